"""Progress on standard error: a bar on a terminal, a line every few seconds elsewhere."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

# Seconds between two lines of progress.
LINE_SECONDS = 3.0
# Columns of all but the bar, for a billion messages.
_FIGURES_WIDTH = 52


class Progress(Protocol):
    """How far long work has come: `done` of `total` messages in this phase."""

    @property
    def phase(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...


Listener = Callable[[Progress], None]


@contextmanager
def progress(quiet: bool) -> Iterator[Listener]:
    """Show the progress that the listener receives."""
    console = Console(stderr=True)
    if quiet:
        yield lambda _progress: None
    elif console.is_terminal:
        with _bar(console) as bar:
            yield BarListener(bar)
    else:
        yield LineListener()


def _bar(console: Console) -> Bar:
    """The bar itself takes what the figures leave of the terminal's width, from 60 columns on."""
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
    """Prints a line every `LINE_SECONDS`, and one at the end of each phase."""

    def __init__(self) -> None:
        self.phase = ""
        self.started = self.said = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Print a line, where it is time to."""
        now = time.monotonic()
        if progress.phase != self.phase:
            self.phase, self.started, self.said = progress.phase, now, 0.0
        if now - self.said >= LINE_SECONDS or progress.done == progress.total:
            self.said = now
            elapsed = now - self.started
            left = elapsed / max(progress.done, 1) * (progress.total - progress.done)
            with contextlib.suppress(OSError):  # a closed standard error is no reason to end the work
                print(  # noqa: T201
                    f"{progress.phase}: {progress.done:,} of {progress.total:,} messages,"
                    f" {_speed(progress.done, elapsed)}/s, {left:.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )


def _speed(done: int, seconds: float) -> str:
    return f"{done / seconds:,.0f}" if seconds > 0.01 else "-"


class PlainConsole(Console):
    """Standard output as text: no markup, no colours for numbers; a closed pipe is an OSError."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False)

    def on_broken_pipe(self) -> None:
        """Raise, since rich would exit with 1, which means that something differs."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
