"""Write the log in a thread.

A standard error that is not read must not block the server.
"""

import logging
import os
import queue
import sys
import threading
import time

MAX_LINES = 10_000
"""Lines that wait to be written; further lines are dropped and counted."""

_FLUSH_SECONDS = 1.0


def write_in_background() -> None:
    """Move the root logger's handlers for standard error into a thread."""
    logging.captureWarnings(True)
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
            root.removeHandler(handler)
            root.addHandler(_Writer(handler.formatter))


class _Writer(logging.Handler):
    def __init__(self, formatter: logging.Formatter | None) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._lines: queue.Queue[str] = queue.Queue(MAX_LINES)
        self._dropped = 0
        self._descriptor = sys.stderr.fileno() if sys.stderr else None
        threading.Thread(target=self._write_all, name="log writer", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait at most a second for the lines to be written."""
        deadline = time.monotonic() + _FLUSH_SECONDS
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def _write_all(self) -> None:
        while True:
            line = self._lines.get()
            self._write(line)
            self._lines.task_done()
            dropped, self._dropped = self._dropped, 0
            if dropped:
                self._write(f"{dropped} lines of the log were dropped: standard error was not read")

    def _write(self, line: str) -> None:
        # Not through sys.stderr: a thread that blocks here would hold its lock, and the interpreter could not exit.
        rest = f"{line}\n".encode(errors="backslashreplace")
        while rest and self._descriptor is not None:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # closed
                return
