"""Show progress on standard error, as a bar or as lines."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

# Seconds between two lines of progress.
LINE_SECONDS = 3.0
# Columns of the terminal for everything but the bar, for a billion messages.
_FIGURES_WIDTH = 52


class Progress(NamedTuple):
    """Describe a phase: `done` of `total` messages.

    A run has committed the messages that are done.
    """

    phase: str
    done: int
    total: int


Listener = Callable[[Progress], None]
"""Receives the progress after each committed step. An exception from the listener ends the run."""


@contextmanager
def progress(quiet: bool) -> Iterator[Listener]:
    """Show the progress that the yielded listener receives."""
    console = Console(stderr=True)
    if quiet:
        yield lambda _progress: None
    elif console.is_terminal:
        with _bar(console) as bar:
            yield BarListener(bar)
    else:
        yield LineListener()


def _bar(console: Console) -> Bar:
    """Build a bar that fills the width left by the figures."""
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=min(max(console.width - _FIGURES_WIDTH, 5), 40)),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}/s"),
        TimeRemainingColumn(compact=True),
        console=console,
    )


class BarListener:
    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.tasks: dict[str, tuple[TaskID, float]] = {}

    def __call__(self, progress: Progress) -> None:
        if progress.phase not in self.tasks:
            task = self.bar.add_task(progress.phase, total=progress.total, speed="-")
            self.tasks[progress.phase] = (task, time.monotonic())
        task, started = self.tasks[progress.phase]
        speed = _speed(progress.done, time.monotonic() - started)
        self.bar.update(task, completed=progress.done, total=progress.total, speed=speed)


class LineListener:
    """Print a line every `LINE_SECONDS`, and after each phase."""

    def __init__(self) -> None:
        self.phase = ""
        self.started = self.said = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Print a line if one is due."""
        now = time.monotonic()
        if progress.phase != self.phase:
            self.phase, self.started, self.said = progress.phase, now, 0.0
        if now - self.said >= LINE_SECONDS or progress.done == progress.total:
            self.said = now
            elapsed = now - self.started
            left = elapsed / max(progress.done, 1) * (progress.total - progress.done)
            with contextlib.suppress(OSError):  # a closed standard error must not stop the work
                print(  # noqa: T201
                    f"{progress.phase}: {progress.done:,} of {progress.total:,} messages,"
                    f" {_speed(progress.done, elapsed)}/s, {left:.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )


def _speed(done: int, seconds: float) -> str:
    return f"{done / seconds:,.0f}" if seconds > 0.01 else "-"


class PlainConsole(Console):
    """Write plain text to standard output; a closed pipe raises an OSError."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False)

    def on_broken_pipe(self) -> None:
        """Raise an error: rich would exit with 1, which reports a difference."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
