"""The progress of a fit: a bar on a terminal, plain lines anywhere else, events for other programs."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

from dip_fast.fitting.callbacks import PERCENT, interval, steps_done, steps_in_all
from dip_fast.fitting.costs import Forecast
from dip_fast.fitting.loop import Fit
from dip_fast.fitting.results import COLUMNS

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_EVENTS = 0.5
WIDTH = 80  # columns that the bar takes, where the terminal is no narrower

Emit = Callable[[dict[str, Any]], None]  # hands an event to another program


class Progress:
    """A callback of a fit that shows its progress; also a context, which closes the bar.

    Parameters
    ----------
    fit : Fit
        The fit, before its first step or resumed.
    say : callable
        Prints a line without disturbing the bar.
    doing : str
        What the task does, in a word.
    quiet : bool
        Whether to show nothing.
    verbose : bool
        Whether to show steps, loss and stopping statistic in place of what a user understands.
    emit : callable, optional
        Takes the progress as events, in place of what is shown.
    part : tuple of int
        Which of several fits this is, counted from 0, and of how many: what is shown is the progress of all.
    """

    every = 0  # at whatever step the fit is

    def __init__(
        self,
        fit: Fit,
        say: Callable[[str], None],
        doing: str,
        *,
        quiet: bool = False,
        verbose: bool = False,
        emit: Emit | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.say = say
        self.number, self.count = part
        self.doing = doing
        self.verbose = verbose
        self.first = steps_done(fit)
        self.events = len(fit.events)
        self.started = self.printed = time.monotonic()
        self.forecast = Forecast(fit, self.started)
        self.begun = self.forecast.fraction
        self.quiet = quiet
        self.emit = emit
        on_terminal = not quiet and emit is None and sys.stderr.isatty()
        self.bar = _bar(self) if on_terminal else None

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
        now, done, total = time.monotonic(), steps_done(fit), steps_in_all(fit)
        self.forecast.update(fit, now)
        if self.bar is not None:
            self.bar.bar_format = _bar_format(self)
            self.bar.set_description_str(self.stage(fit), refresh=False)
            self.bar.set_postfix_str(self.figures(fit), refresh=False)
            self.bar.update(PERCENT * self.fraction - self.bar.n)
            return
        between = SECONDS_BETWEEN_LINES if self.emit is None else SECONDS_BETWEEN_EVENTS
        if now - self.printed < between and done not in (self.first + 1, total):
            return
        self.printed = now
        if self.emit is not None:
            self.emit(self.event(fit))
        elif not self.quiet:
            shown = [f"{self.stage(fit)} {math.floor(PERCENT * self.fraction)}%"]
            if self.verbose:
                rate = (done - self.first) / max(now - self.started, 1e-9)
                shown = [f"step {self.number * total + done}/{self.count * total}", f"{rate:.3g} steps/s"]
            left = interval(self.seconds_left)
            self.say(", ".join([*shown, *filter(None, [self.figures(fit)]), f"{left} left"]))

    @property
    def fraction(self) -> float:
        """Compute what is done of all fits."""
        return (self.number + self.forecast.fraction) / self.count

    @property
    def seconds_left(self) -> float | None:
        """Estimate all fits, as if each that follows took as long as this one."""
        left = self.forecast.seconds_left
        if left is None or self.begun >= 1:
            return left
        whole = (time.monotonic() - self.started + left) / (1 - self.begun)
        return left + (self.count - self.number - 1) * whole

    def stage(self, fit: Fit) -> str:
        """Name what the fit does now."""
        return "finishing" if fit.consolidated or fit.passes else self.doing

    def event(self, fit: Fit) -> dict[str, Any]:
        """Describe the last step for another program; what is not known is None."""
        row = dict(zip(COLUMNS, fit.rows[-1], strict=True)) if fit.rows else {}
        known = {name: value for name, value in row.items() if not math.isnan(value)}
        left, total = self.seconds_left, steps_in_all(fit)
        return {
            "event": "progress",
            "stage": self.stage(fit),
            "done": self.number * total + steps_done(fit),
            "total": self.count * total,
            "percent": math.floor(10 * PERCENT * self.fraction) / 10,
            "step": fit.steps,
            "seconds_left": None if left is None else round(left, 1),
            "loss": known.get("loss"),
            "psnr": known.get("psnr"),
            "estimated_psnr": fit.estimated_psnr(),
        }

    def figures(self, fit: Fit) -> str:
        """Describe the last step: its quality as far as it is known, or all of its figures."""
        if not fit.rows:
            return ""
        row = dict(zip(COLUMNS, fit.rows[-1], strict=True))
        shown = [f"loss {row['loss']:.3e}"] if self.verbose else []
        if self.verbose and not math.isnan(row["variance"]):
            shown.append(f"variance {row['variance']:.2e}")
        if not math.isnan(row["psnr"]):
            shown.append(f"PSNR {row['psnr']:.2f} dB")
        if (estimated := fit.estimated_psnr()) is not None:
            shown.append(f"about {estimated:.1f} dB")
        return ", ".join(shown)


def _bar(progress: Progress) -> tqdm:
    """Make the bar: what is done, how much of it, the time that is left, the quality so far."""
    return tqdm(
        total=PERCENT,
        initial=PERCENT * progress.fraction,
        file=sys.stderr,
        ncols=min(WIDTH, shutil.get_terminal_size().columns),
        nrows=2,  # tqdm shows no bar on a terminal of no known size, as those of containers and logs are
        bar_format=_bar_format(progress),
    )


def _bar_format(progress: Progress) -> str:
    return f"{{desc}}{{percentage:4.0f}}% |{{bar}}| {interval(progress.seconds_left)} left{{postfix}}"
