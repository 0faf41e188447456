"""The progress of a fit: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

from dip_fast.fitting.loop import Fit
from dip_fast.fitting.results import COLUMNS

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A callback of a fit that shows its progress; also a context, which closes the bar.

    Parameters
    ----------
    fit : Fit
        The fit, before its first step or resumed.
    say : callable
        Prints a line without disturbing the bar.
    quiet : bool
        Whether to show nothing.
    """

    every = 0  # at whatever step the fit is

    def __init__(self, fit: Fit, say: Callable[[str], None], *, quiet: bool = False) -> None:
        self.say = say
        self.first = fit.steps
        self.events = len(fit.events)
        self.started = self.printed = time.monotonic()
        self.quiet = quiet
        on_terminal = not quiet and sys.stderr.isatty()
        self.bar = (
            tqdm(total=steps_in_all(fit), initial=self.first, file=sys.stderr, unit="step") if on_terminal else None
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, fit: Fit) -> None:
        """Show the step that was just made."""
        for event in fit.events[self.events :]:
            self.say(
                f"{event['fault']} at step {event['step']}: back to step {event['back_to_step']}, "
                f"learning rate times {event['learning_rate_factor']:g}"
            )
        self.events = len(fit.events)
        now, done = time.monotonic(), fit.steps + fit.consolidation_steps
        total = steps_in_all(fit)
        if self.bar is not None:
            self.bar.total = total
            self.bar.set_postfix_str(figures(fit), refresh=False)
            self.bar.update(done - self.bar.n)
        elif not self.quiet and (now - self.printed >= SECONDS_BETWEEN_LINES or done in (self.first + 1, total)):
            self.printed = now
            rate = (done - self.first) / max(now - self.started, 1e-9)
            left = tqdm.format_interval((total - done) / rate) if rate > 0 else "?"
            self.say(f"step {done}/{total}, {figures(fit)}, {rate:.3g} steps/s, {left} left")


def steps_in_all(fit: Fit) -> int:
    """Most steps, or all of them once that is known, with those of consolidation."""
    return (fit.steps if fit.stop_reason else fit.options.iterations) + fit.options.consolidation_steps


def figures(fit: Fit) -> str:
    """Loss, stopping statistic and, with a reference, PSNR of the last step."""
    if fit.consolidation_steps:
        return "consolidating"
    if not fit.rows:
        return "starting"
    row = dict(zip(COLUMNS, fit.rows[-1], strict=True))
    shown = [f"loss {row['loss']:.3e}", f"variance {row['variance']:.2e}"]
    if not math.isnan(row["psnr"]):
        shown.append(f"PSNR {row['psnr']:.2f} dB")
    return ", ".join(shown)
