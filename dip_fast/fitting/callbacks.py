"""When the callbacks of a fit are called, and one that shows its progress.

A callback with an attribute ``every`` is called after each step, pass or step of consolidation whose number is a
multiple of it; with 0 whenever the host hears of the fit; without it after each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dip_fast.errors import UsageError
from dip_fast.fitting.costs import Forecast
from dip_fast.values import integer

if TYPE_CHECKING:
    from dip_fast.fitting.loop import Fit


PERCENT = 100  # what a bar counts: a pass may take as long as twenty steps, so their numbers say little


def checked(callbacks: Any) -> list[Callable[[Any], None]]:
    """List callbacks, and refuse what cannot be called, or not at the steps that it names."""
    if isinstance(callbacks, Iterable) and not callable(callbacks):
        listed = [*callbacks]
        if all(map(callable, listed)):
            for callback in listed:
                integer("every of a callback", getattr(callback, "every", 1), least=0)
            return listed
    raise UsageError(f"callbacks must be a list of functions of the fit, got {callbacks!r}; put one into a list")


def periods(callbacks: Sequence[Callable[[Any], None]]) -> list[int]:
    """List how many steps lie between two calls, for those callbacks that are called at steps of their own."""
    return [every for callback in callbacks if (every := getattr(callback, "every", 1))]


def call_those_due(callbacks: Sequence[Callable[[Any], None]], fit: Fit, done: int) -> None:
    """Call the callbacks that are to be called once so many steps are done."""
    for callback in callbacks:
        every = getattr(callback, "every", 1)
        if not every or done % every == 0:
            callback(fit)


def steps_done(fit: Fit) -> int:
    """Count steps, passes of the estimate and steps of consolidation alike."""
    return fit.steps + fit.passes + fit.consolidated


def steps_in_all(fit: Fit) -> int:
    """Most steps, or all of them once that is known, with passes and steps of consolidation."""
    steps = fit.steps if fit.stop_reason else fit.options.iterations
    return steps + fit.objective.passes + fit.consolidation_steps


class Bar:
    """A callback that moves a bar of tqdm."""

    every = 0

    def __init__(self, fit: Fit, bar: Any) -> None:
        self.bar = bar
        self.forecast = Forecast(fit, time.monotonic())

    def __call__(self, fit: Fit) -> None:
        """Show the step that was just made."""
        self.forecast.update(fit, time.monotonic())
        self.bar.bar_format = (
            f"{{l_bar}}{{bar}}| {steps_done(fit)}/{steps_in_all(fit)} "
            f"[{{elapsed}}<{interval(self.forecast.seconds_left)}{{postfix}}]"
        )
        if fit.rows:
            *_, loss, _, _, psnr = fit.rows[-1]
            shown = f"loss {loss:.3e}" + ("" if math.isnan(psnr) else f", PSNR {psnr:.2f} dB")
            self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update(PERCENT * self.forecast.fraction - self.bar.n)


def interval(seconds: float | None) -> str:
    """Write a time as hours, minutes and seconds."""
    from tqdm import tqdm  # here, since few fits of arrays show anything

    return "?" if seconds is None else tqdm.format_interval(seconds)


@contextmanager
def shown(
    fit: Fit, callbacks: Sequence[Callable[[Any], None]], progress: bool
) -> Iterator[list[Callable[[Any], None]]]:
    """List the callbacks of a fit, with one that shows its progress if it is to be shown: a bar, in notebooks too."""
    asked = checked(callbacks)
    if not progress:
        yield asked
        return
    from tqdm.auto import tqdm  # here, since it looks for a notebook

    with tqdm(total=PERCENT) as bar:
        yield [*asked, Bar(fit, bar)]
