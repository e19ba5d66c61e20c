"""Throttle long work beside live traffic: the size of its transactions, and the pauses between them."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Self

from app.db.database import Database

# Seconds.
BREATH_SECONDS = 0.11
"""A waiting writer of SQLite retries at least every 0.1 seconds, so a pause of this length gives it its turn."""
WORK_SECONDS = 0.5
"""The time between two such pauses."""


@dataclass
class Pace:
    """Size batches so that a transaction holds its locks for about `target_seconds`."""

    rows: int
    least: int
    most: int
    target_seconds: float
    pauses: bool = False
    """Whether writers wait for every transaction, as they do on SQLite, so that pauses must let them in."""
    _began: float = field(default_factory=lambda: time.monotonic())
    _paused: float = field(default_factory=lambda: time.monotonic())

    @classmethod
    def on(cls, database: Database, rows: int, least: int, most: int, target_seconds: float) -> Self:
        """The pace of work on a database."""
        return cls(rows, least, most, target_seconds, pauses=database.engine.dialect.name == "sqlite")

    def begin(self) -> None:
        """Note that locks are held from now on."""
        self._began = time.monotonic()

    def end(self) -> None:
        """Note that the locks are released, and size the next transaction by how long this one took."""
        factor = self.target_seconds / max(time.monotonic() - self._began, 1e-3)
        self.rows = min(max(int(self.rows * min(max(factor, 0.5), 1.5)), self.least), self.most)

    async def pause(self) -> None:
        """Let waiting writers in, where it is time to; to be awaited before a transaction."""
        if self.pauses and time.monotonic() - self._paused >= WORK_SECONDS:
            await asyncio.sleep(BREATH_SECONDS)
            self._paused = time.monotonic()
