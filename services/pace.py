"""The pace of long work beside live traffic: how much one transaction does, and when it lets others go first."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import DATA_VERSION, READ_ONLY, Database

BREATH_SECONDS = 0.11
"""A waiting writer of SQLite asks at least every 0.1 seconds, so in a breath of this length it gets its turn."""
WORK_SECONDS = 1.0
"""Between two breaths."""
WORK_SECONDS_BESIDE_OTHERS = 0.25
ALONE_FACTOR = 10
"""So many times longer a transaction may take where others would wait for it, but there are none."""
OTHERS_STAY_SECONDS = 5.0
"""So long after a write of others more of them are expected."""


@dataclass
class Pace:
    """So many rows a transaction that others wait for it no longer than `target_seconds`; more where it is quicker."""

    rows: int
    least: int
    most: int
    target_seconds: float
    version: Callable[[], Awaitable[int]] | None = None
    """Where writers wait for every transaction, as they do on SQLite: what changes when others write."""
    _began: float = field(default_factory=lambda: time.monotonic())
    _ended: float = field(default_factory=lambda: time.monotonic())
    _breathed: float = field(default_factory=lambda: time.monotonic())
    _took: float = 0.0
    _version: int | None = None
    _others_wrote: float = -OTHERS_STAY_SECONDS

    @classmethod
    @asynccontextmanager
    async def on(
        cls, database: Database, rows: int, least: int, most: int, target_seconds: float
    ) -> AsyncIterator[Self]:
        """The pace of work on a database."""
        if database.engine.dialect.name != "sqlite":
            yield cls(rows, least, most, target_seconds)
            return
        async with database.engine.connect() as connection:
            await connection.execution_options(**{READ_ONLY: True})
            version = functools.partial(_data_version, connection)
            yield cls(rows, least, most, target_seconds, version, _version=await version())

    @property
    def is_alone(self) -> bool:
        """Whether others would wait, but there are none."""
        return self.version is not None and not self._beside_others(time.monotonic())

    def begin(self) -> None:
        """From now on others wait."""
        self._began = time.monotonic()

    async def end(self) -> None:
        """Nobody waits any more: sets the size of the next transaction by how long this one took."""
        self._ended = time.monotonic()
        self._took = self._ended - self._began
        target = self.target_seconds * (ALONE_FACTOR if self.is_alone else 1)
        factor = target / max(self._took, 1e-3)
        self.rows = min(max(int(self.rows * min(max(factor, 0.5), 1.5)), self.least), self.most)
        if self.version:
            self._version = await self.version()

    async def breathe(self) -> None:
        """Lets others go first, if it is time to and they could not yet; makes what comes next smaller if any did.

        To be awaited before the next transaction; nobody else of this process may write between `end` and this.
        """
        if not self.version:
            return
        now = time.monotonic()
        missing = self._ended + BREATH_SECONDS - now
        work_seconds = WORK_SECONDS if self.is_alone else WORK_SECONDS_BESIDE_OTHERS
        if missing > 0 and now - self._breathed + self._took / 2 >= work_seconds:  # nearer to it than after the next
            await asyncio.sleep(missing)
            now, missing = time.monotonic(), 0
        if missing <= 0:
            self._breathed = now
        if self._version is not None and await self.version() != self._version:
            if self.is_alone:
                self.rows = max(self.rows // ALONE_FACTOR, self.least)
            self._others_wrote = now

    def _beside_others(self, now: float) -> bool:
        return now - self._others_wrote < OTHERS_STAY_SECONDS


async def _data_version(connection: AsyncConnection) -> int:
    async with connection.begin():
        return await connection.scalar(DATA_VERSION) or 0
