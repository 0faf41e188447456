"""Kinds of options and commands that click does not have."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from dip_fast.errors import Spelling, Stopped
from dip_fast.registry import suggest

F = TypeVar("F", bound=Callable[..., Any])


class Verbs(click.Group):
    """A group that suggests the verb that was meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(f"no such command: {args[0]!r}{suggest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; click itself would print an empty line where it is interrupted."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Stopped("; ".join(["stopped by the user", *map(str, error.args)])) from error


class Choice(click.Choice[str]):
    """A choice that suggests the value that was meant."""

    def get_invalid_choice_message(self, value: str, ctx: click.Context | None) -> str:
        """List the values there are."""
        choices = [str(choice) for choice in self.choices]
        return f"{value!r} is not one of {', '.join(choices)}{suggest(str(value), choices)}"


class Named(click.ParamType[str]):
    """A name in a registry, which is imported when a value is given or help is asked for.

    Parameters
    ----------
    registry : callable
        Returns a mapping whose keys are the names.
    """

    name = "name"

    def __init__(self, registry: Callable[[], Mapping[str, Any]]) -> None:
        self.registry = registry

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Show the names."""
        return f"[{'|'.join(self.registry())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the name."""
        registry = self.registry()
        if value not in registry:
            self.fail(f"{value!r} is not one of {', '.join(registry)}{suggest(str(value), registry)}", param, ctx)
        return str(value)


class Tile(click.ParamType[int | str]):
    """Pixels, or a word; `dip_fast.runs.job.complete` checks both."""

    name = "tile"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Read a number."""
        return int(value) if str(value).isdecimal() else str(value)


class Formats(click.ParamType[tuple[str, ...]]):
    """Names of model formats with commas between them, or none."""

    name = "formats"

    def __init__(self, registry: Callable[[], Mapping[str, Any]]) -> None:
        self.registry = registry

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Parse the names."""
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
        if names == ["none"]:
            return ()
        choices = [*self.registry(), "none alone"]
        for name in names:
            if name not in choices[:-1]:
                self.fail(f"{name!r} is not one of {', '.join(choices)}{suggest(name, choices)}", param, ctx)
        return tuple(dict.fromkeys(names))


def is_named_as_picture(path: Path) -> bool:
    """Whether a path has the suffix of a picture, and is no folder that is there."""
    from dip_fast.pictures.files import is_there
    from dip_fast.pictures.formats import FORMATS

    suffixes = {suffix for format_ in FORMATS.values() for suffix in format_.suffixes}
    return path.suffix.lower() in suffixes and not (is_there(path) and path.is_dir())


class FolderPath(click.Path):
    """A path of a folder for several results; one that is named as a picture is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Check the name: a folder clean.tif, with the results inside, is not what anybody means by it."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if is_named_as_picture(path):
            self.fail(f"{str(path)!r} is named as a picture, and the results need a folder; leave out {path.suffix}")
        return path


class Lists(click.Command):
    """A command whose options of several values take them at once too: ``--sizes 256 512`` or ``--sizes 256,512``.

    It has no arguments, so that every word after such an option, up to the next option, is a value of it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each of its values, which is what click parses."""
        names = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        given: list[str] = []
        option = ""  # whose values the next words are
        for word, following in itertools.pairwise([*args, "--"]):
            name, equals, values = word.partition("=")
            if name in names and equals:
                given += [f"{name}={value}" for value in values.split(",")]
                option = ""
            elif name in names and not following.startswith("-"):
                option = name
            elif option and not word.startswith("-"):
                given += [f"{option}={value}" for value in word.split(",")]
            else:
                given.append(word)
                option = ""
        return super().parse_args(ctx, given)


def json_option(function: F) -> F:
    """Add ``--json``, the argument ``as_json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there."
    )(function)


def debug_option(function: F) -> F:
    """Add ``--debug``, which `main` looks for."""
    return click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")(function)


def spelling(command: click.Command | None) -> Spelling:
    """Spell arguments as the options of a command."""
    found: dict[str, list[str]] = {}
    for param in [] if command is None else command.get_params(click.Context(command)):
        name = str(param.name).removeprefix("as_").removesuffix("_")
        if not isinstance(param, click.Option):
            found[name] = [name.upper(), ""]
            continue
        option = max(param.opts, key=len)
        found[name] = [option, max(param.secondary_opts, key=len, default="")] if param.is_flag else [option]
    if "fused" in found:
        found["engine"] = found["fused"]
    return Spelling(found)


def task_parameters(tasks: Mapping[str, Any]) -> Iterator[click.Option]:
    """Make the options of all tasks: a file for each input, and their own options; one for each name.

    Where tasks say different things of a name, its help has what each says.
    """
    entries: dict[str, dict[str, Any]] = {}
    for task in tasks.values():
        for entry in (*task.inputs, *task.options):
            entries.setdefault(entry.name, {})[task.name] = entry
    for by_task in entries.values():
        first = next(iter(by_task.values()))
        defaults = {getattr(entry, "default", None) for entry in by_task.values()}
        tasks_by_text = {_text(entry, with_default=len(defaults) > 1): name for name, entry in by_task.items()}
        text = next(iter(tasks_by_text))
        if len(tasks_by_text) > 1:
            text = "  ".join(f"With {name}: {text}" for text, name in tasks_by_text.items())
        yield _option(first, text, with_default=len(defaults) == 1) if hasattr(first, "type") else _input(first, text)


def _text(entry: Any, *, with_default: bool) -> str:
    """Write the help of a task's entry, with its default where another task has another one."""
    return f"{entry.help[:-1]}, {entry.default} by default." if with_default else str(entry.help)


def _input(entry: Any, text: str) -> click.Option:
    return click.Option([f"--{entry.name.replace('_', '-')}"], type=click.Path(path_type=Path), help=text)


def _option(entry: Any, text: str, *, with_default: bool) -> click.Option:
    name = f"--{entry.name.replace('_', '-')}"
    if entry.type is bool:
        state = "on" if entry.default else "off"
        return click.Option([f"{name}/--no-{name[2:]}", entry.name], default=None, help=f"{text}  [default: {state}]")
    kind = Choice(list(entry.type)) if isinstance(entry.type, tuple) else entry.type
    text = f"{text}  [default: {entry.default}]" if with_default and entry.default is not None else text
    return click.Option([name, entry.name], type=kind, default=None, help=text)
