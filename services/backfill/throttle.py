"""Throttle long work concurrently with live traffic.

The throttle sizes transactions, and pauses between them.
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Self

from app.db.database import Database

# Seconds of a pause. A waiting writer of SQLite retries at least every 0.1 s, so one such pause lets the writer in.
BREATH_SECONDS = 0.11
# Seconds between two pauses.
WORK_SECONDS = 0.5


@dataclass
class Throttle:
    """Size batches so that a transaction holds its locks for about `target_seconds`."""

    rows: int
    least: int
    most: int
    target_seconds: float
    pauses: bool = False
    """Whether writers wait for every transaction, as on SQLite, and therefore need pauses."""
    _began: float = field(default_factory=lambda: time.monotonic())
    _paused: float = field(default_factory=lambda: time.monotonic())

    @classmethod
    def on(cls, database: Database, rows: int, least: int, most: int, target_seconds: float) -> Self:
        """Return the throttle of work on a database.

        `rows` is the size of the first transaction; `least` and `most` are its limits.
        """
        return cls(rows, least, most, target_seconds, pauses=database.engine.dialect.name == "sqlite")

    def begin(self) -> None:
        """Start the clock: the transaction holds its locks from now on."""
        self._began = time.monotonic()

    def end(self) -> None:
        """Stop the clock, and size the next transaction by the time taken."""
        factor = self.target_seconds / max(time.monotonic() - self._began, 1e-3)
        self.rows = min(max(int(self.rows * min(max(factor, 0.5), 1.5)), self.least), self.most)

    async def pause(self) -> None:
        """Pause if due, so that waiting writers proceed.

        Call before a transaction.
        """
        if self.pauses and time.monotonic() - self._paused >= WORK_SECONDS:
            await asyncio.sleep(BREATH_SECONDS)
            self._paused = time.monotonic()
