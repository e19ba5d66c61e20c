"""The pace of long work beside live traffic: how much one transaction does, and when it lets others go first."""

import asyncio
import time
from dataclasses import dataclass, field

BREATH_SECONDS = 0.11
"""A waiting writer of SQLite asks at least every 0.1 seconds, so in a breath of this length it gets its turn."""
WORK_SECONDS = 1.0
"""Between two breaths."""
WORK_SECONDS_BESIDE_OTHERS = 0.25
ALONE_FACTOR = 5
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
    breathes: bool
    """Whether writers wait for every transaction, as they do on SQLite."""
    _began: float = field(default_factory=lambda: time.monotonic())
    _breathed: float = field(default_factory=lambda: time.monotonic())
    _others_wrote: float = -OTHERS_STAY_SECONDS
    _version: int | None = None

    def see(self, version: int) -> None:
        """Takes note of the version of the data, which changes when others write (`PRAGMA data_version`)."""
        if self._version not in (None, version):
            self._others_wrote = time.monotonic()
        self._version = version

    def begin(self) -> None:
        """From now on others wait."""
        self._began = time.monotonic()

    def end(self) -> None:
        """Nobody waits any more: sets the size of the next transaction by how long this one took."""
        now = time.monotonic()
        alone = self.breathes and not self._beside_others(now)
        target = self.target_seconds * (ALONE_FACTOR if alone else 1)
        factor = target / max(now - self._began, 1e-3)
        self.rows = min(max(int(self.rows * min(max(factor, 0.5), 1.5)), self.least), self.most)

    async def breathe(self) -> None:
        """Lets others go first, if it is time to."""
        now = time.monotonic()
        work_seconds = WORK_SECONDS_BESIDE_OTHERS if self._beside_others(now) else WORK_SECONDS
        if self.breathes and now - self._breathed >= work_seconds:
            await asyncio.sleep(BREATH_SECONDS)
            self._breathed = time.monotonic()

    def _beside_others(self, now: float) -> bool:
        return now - self._others_wrote < OTHERS_STAY_SECONDS
