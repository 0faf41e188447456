"""The seam between the driver and whatever does the work: processes here, or an engine's on other machines."""

from __future__ import annotations

from typing import Any, Protocol

from dip_fast.runs.batch.plan import Item

# What a pool reports, a dictionary each.  ``event`` is one of
#   "started"     a worker has begun with the picture; ``host``, ``pid``
#   "note"        a line for the user; ``text``
#   "progress"    as `dip_fast.runs.progress.Progress.event` writes it
#   "ended"       the picture is out of the pool's hands; ``status``, see `dip_fast.runs.batch.work`, and ``error``;
#                 "lost" is added by the pool, where the worker was killed, crashed or cannot be reached any more, and
#                 "unstarted" where it never got as far as to begin with the picture
#   "refused"     the settings are wrong for all pictures, or not available here; ``error`` as `messages.packed`
# and ``picture`` is the name of its item, but for "refused".
Event = dict[str, Any]


class Pool(Protocol):
    """Something that restores pictures, several at a time, and survives what happens to its workers."""

    def free(self) -> int:
        """Return how many pictures it takes now."""

    def submit(self, item: Item) -> None:
        """Begin with a picture, or go on with it: its folder says which."""

    def events(self, timeout: float) -> list[Event]:
        """Wait for events, for so many seconds at most."""

    def stop(self) -> None:
        """Ask what is under way to end after its step, with a checkpoint; each picture ends as interrupted or done."""

    def kill(self) -> None:
        """End what is under way at once; nothing is reported of it any more."""

    def close(self) -> None:
        """Let the workers go, when there is nothing more to do."""
