"""Registries: things that are chosen by name, from this package or from an installed plugin.

A plugin is a package with an entry point in the group ``dip_fast.plugins``, which names a module; importing the module
registers what it brings:

    [project.entry-points."dip_fast.plugins"]
    mine = "my_package.dip_fast_plugin"

Plugins are imported when a registry is first read.  An entry may be given as ``"module:attribute"``, which is imported
when it is first used, so that ``dip-fast --help`` stays quick.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from dip_fast.errors import UsageError
from dip_fast.lazily import resolve

GROUP = "dip_fast.plugins"
T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to things of one kind, which others can add to.

    Parameters
    ----------
    kind : str
        What is registered, in a word or two: messages name the argument so.
    entries : mapping of str to T or str
        What is there from the start; a string is a ``"module:attribute"`` to import on first use.
    """

    def __init__(self, kind: str, entries: Mapping[str, T | str]) -> None:
        self.kind = kind
        self._entries: dict[str, Any] = dict(entries)

    def register(self, name: str, entry: T | str) -> None:
        """Add an entry.

        Raises
        ------
        ValueError
            If the name is taken: nothing replaces what is there in silence.
        """
        if name in self._entries and self._entries[name] != entry:
            raise ValueError(f"there is a {self.kind} {name!r} already; choose another name")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        """Look an entry up, and import it where that was put off.

        Raises
        ------
        UsageError
            If there is none of that name; it names those that there are.
        """
        load_plugins()
        if name not in self._entries:
            raise UsageError(
                f"{self.kind} must be one of {', '.join(self._entries)}, got {name!r}{suggest(name, self)}"
            )
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = self._entries[name] = resolve(entry)
        found: T = entry
        return found

    def __contains__(self, name: object) -> bool:
        load_plugins()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(list(self._entries))

    def __len__(self) -> int:
        load_plugins()
        return len(self._entries)


def suggest(word: str, words: Any) -> str:
    """Name the word that was probably meant, as the end of a message; empty where none is near."""
    near = difflib.get_close_matches(word, [*words], n=1)
    return f"; did you mean {near[0]}?" if near else ""


_loading = threading.RLock()
_loaded = False


def load_plugins() -> None:
    """Import the modules that installed plugins name, once in a process.

    Raises
    ------
    UsageError
        If one cannot be imported: what it brings would be missing without a word.
    """
    global _loaded
    with _loading:
        if _loaded:
            return
        _loaded = True  # first: a plugin's own module reads the registries
        from importlib import metadata  # here, since it is a quarter of what `dip-fast --help` imports

        for point in metadata.entry_points(group=GROUP):
            try:
                point.load()
            except Exception as error:  # a plugin is anybody's code
                text = " ".join(f"{type(error).__name__}: {error}".split())
                raise UsageError(
                    f"the plugin {point.name} ({point.value}) cannot be imported: {text}; update or uninstall it"
                ) from error
