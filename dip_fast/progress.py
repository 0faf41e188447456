"""What a user sees while a fit works: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

from dip_fast.fitting import COLUMNS, Fit

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Callback of a fit, and a context.

    Parameters
    ----------
    total, done : int
        Most steps, those of consolidation included, and those done before.
    quiet : bool
        Show nothing.
    stream : file
        Standard error by default.
    """

    def __init__(self, total: int, done: int = 0, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.total, self.first = total, done
        self.started = self.printed = time.monotonic()
        self.quiet = quiet
        on_terminal = not quiet and self.stream.isatty()
        self.bar = tqdm(total=total, initial=done, file=self.stream, unit="step") if on_terminal else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def say(self, line: str) -> None:
        """Print a line without disturbing the bar."""
        if self.bar is not None:
            self.bar.write(line, file=self.stream)
        elif not self.quiet:
            print(line, file=self.stream, flush=True)

    def __call__(self, fit: Fit) -> None:
        """Show the step that was just made."""
        now, done = time.monotonic(), fit.steps + fit.consolidation_steps
        if fit.stop_reason:
            self.total = fit.steps + fit.options.consolidation
        if self.bar is not None:
            self.bar.total = self.total
            self.bar.set_postfix_str(figures(fit), refresh=False)
            self.bar.update(done - self.bar.n)
        elif now - self.printed >= SECONDS_BETWEEN_LINES or done in (self.first + 1, self.total):
            self.printed = now
            rate = (done - self.first) / max(now - self.started, 1e-9)
            left = tqdm.format_interval((self.total - done) / rate) if rate > 0 else "?"
            self.say(f"step {done}/{self.total}, {figures(fit)}, {rate:.3g} steps/s, {left} left")


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
