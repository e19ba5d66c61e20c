"""Stop a command after Ctrl-C or SIGTERM, between two transactions."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.console import Listener, Progress

# Seconds that a batch may continue after Ctrl-C or SIGTERM. Then the script rolls it back.
STOP_SECONDS = 10.0
# Seconds that the rollback may take. Then the process exits as if it were killed, which is harmless at any point.
END_SECONDS = 2.0


def say(where: str) -> None:
    """Tell the operator that the script stopped."""
    print(f"migrate_token_data.py: stopped{where}; committed work is kept, run it again to continue", file=sys.stderr)  # noqa: T201


class Stopped(Exception):
    """Report that the operator stopped the run.

    The run stopped between two transactions, or rolled back the current one.
    """


class _Signals:
    """Handle Ctrl-C and SIGTERM.

    The first signal requests the end of the work; the next one has its default effect.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._end = threading.Timer(STOP_SECONDS + END_SECONDS, _end)
        self._end.daemon = True
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._heard: list[signal.Signals] = []
        with contextlib.suppress(RuntimeError, NotImplementedError):  # not the main thread, or Windows
            for number in (signal.SIGINT, signal.SIGTERM):
                self._loop.add_signal_handler(number, self._stop)
                self._heard.append(number)

    def _stop(self) -> None:
        if self.wanted:  # the loop had noted a second signal before it handled the first
            return
        self.wanted = True
        self._hear_no_more()
        self._end.start()
        if self._task:
            self._loop.call_later(STOP_SECONDS, self._task.cancel)

    def forget(self) -> None:
        """Remove the handlers, and cancel the forced exit."""
        self._end.cancel()
        self._hear_no_more()

    def _hear_no_more(self) -> None:
        for number in self._heard:
            self._loop.remove_signal_handler(number)


def _end() -> None:
    say(" while the script waited")
    sys.stderr.flush()
    os._exit(1)


@contextmanager
def between_transactions(listener: Listener) -> Iterator[Listener]:
    """Yield a listener that stops the run after Ctrl-C or SIGTERM.

    The current transaction commits first. It is rolled back if it takes longer than `STOP_SECONDS`, for example while
    another session holds a lock.

    Raises:
        Stopped: the run was stopped.
    """
    signals = _Signals()

    def heard(progress: Progress) -> None:
        listener(progress)
        if signals.wanted:
            raise Stopped(f" while {progress.phase}, {progress.done:,} of {progress.total:,} messages done")

    try:
        yield heard
    except asyncio.CancelledError:
        raise Stopped(" while the script waited") from None
    finally:
        signals.forget()
