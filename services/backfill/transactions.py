"""Run the transactions of long work concurrently with live traffic.

One run at a time has a transaction. The throttle sizes transactions, and pauses between them.
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Self

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.database import Database, T, Work, is_sqlite

_ADVISORY_LOCK = 7_102_024_002
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
    pauses: bool
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
        """Pause before a transaction, if due, so that waiting writers proceed."""
        if self.pauses and time.monotonic() - self._paused >= WORK_SECONDS:
            await asyncio.sleep(BREATH_SECONDS)
            self._paused = time.monotonic()


async def run(database: Database, work: Work[T], throttle: Throttle | None = None) -> T:
    """Run the work in a transaction, while no other run has one.

    So no deficit is added twice. The whole transaction is retried after a deadlock or an outage. Live writers wait only
    for the rows that the work writes; on SQLite, they wait for the whole transaction.

    Args:
        database: the database to write to.
        work: the work, repeatable as in `Database.transaction`. Its reads follow the acquisition of the lock.
        throttle: pauses before the transaction if that is due, and measures how long the transaction takes.
    """

    async def locked(session: AsyncSession) -> T:
        # A separate statement before every comparison: the snapshots of comparisons must be later than the lock. On
        # SQLite, only one transaction can write at a time anyway.
        if not is_sqlite(session):
            await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        if throttle:
            throttle.begin()
        return await work(session)

    if throttle:
        await throttle.pause()
    result = await database.transaction(locked, repeatable=True)
    if throttle:
        throttle.end()
    return result
