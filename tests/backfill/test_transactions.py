"""Throttle long work, measured by a fake clock."""

from types import SimpleNamespace

import pytest

from services.backfill import transactions
from services.backfill.transactions import BREATH_SECONDS, Throttle


class Clock:
    """Advance only by the work and the pauses of the test."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(transactions, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(transactions, "asyncio", SimpleNamespace(sleep=clock.sleep))
    return clock


async def work(throttled: Throttle, clock: Clock, seconds: float, batches: int = 1) -> None:
    for _ in range(batches):
        await throttled.pause()
        throttled.begin()
        clock.now += seconds
        throttled.end()


def new_throttle(*, pauses: bool) -> Throttle:
    return Throttle(rows=1000, least=500, most=20_000, target_seconds=0.125, pauses=pauses)


async def test_a_slow_transaction_shrinks_the_next_and_a_quick_one_grows_it(clock: Clock) -> None:
    of_work = new_throttle(pauses=False)
    await work(of_work, clock, 0.125)
    assert of_work.rows == 1000
    await work(of_work, clock, 0.15625)
    assert of_work.rows == 800
    await work(of_work, clock, 0.0625)
    assert of_work.rows == 1200, "by half at most"
    await work(of_work, clock, 60.0, 10)
    assert of_work.rows == 500
    await work(of_work, clock, 0.0, 40)
    assert of_work.rows == 20_000
    assert not clock.pauses


async def test_waiting_writers_get_their_turn_between_transactions(clock: Clock) -> None:
    of_work = new_throttle(pauses=True)
    await work(of_work, clock, 0.1, batches=60)
    assert set(clock.pauses) == {BREATH_SECONDS}
    assert len(clock.pauses) >= 8, "6 s of work, one pause about every half second"
