"""The pace of long work, by a clock of the test's own."""

from types import SimpleNamespace

import pytest

from services import pace
from services.pace import Pace


class Clock:
    """Stands still, but for what the test or a breath takes; keeps the moments of the breaths."""

    def __init__(self) -> None:
        self.now = 100.0
        self.breaths: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.breaths.append(self.now)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(pace, "asyncio", SimpleNamespace(sleep=clock.sleep))
    return clock


def paced(breathes: bool = True) -> Pace:
    return Pace(rows=1000, least=500, most=20_000, target_seconds=0.1, breathes=breathes)


async def work(pace_: Pace, clock: Clock, seconds: float, batches: int, version: int | None = None) -> None:
    for _ in range(batches):
        if version is not None:
            pace_.see(version)
        pace_.begin()
        clock.now += seconds
        pace_.end()
        await pace_.breathe()


async def test_a_transaction_that_takes_long_makes_the_next_ones_smaller_and_a_quick_one_larger(clock: Clock) -> None:
    of_work = paced(breathes=False)
    await work(of_work, clock, 0.1, 1)
    assert of_work.rows == 1000
    await work(of_work, clock, 0.125, 1)
    assert of_work.rows == 800
    await work(of_work, clock, 9.9, 5)
    assert of_work.rows == 500, "the least"
    await work(of_work, clock, 0.01, 20)
    assert of_work.rows == 20_000, "the most"


async def test_where_there_are_no_others_who_would_wait_a_transaction_may_take_longer(clock: Clock) -> None:
    of_work = paced()
    await work(of_work, clock, 0.625, 1, version=1)
    assert of_work.rows == 800
    await work(of_work, clock, 0.125, 1, version=2)
    assert of_work.rows == 640, "somebody wrote"


async def test_writers_get_their_turn_once_a_second_and_more_often_while_there_are_any(clock: Clock) -> None:
    of_work = paced()
    await work(of_work, clock, 0.0625, 64, version=1)
    assert len(clock.breaths) == 4
    clock.breaths.clear()
    await work(of_work, clock, 0.0625, 1, version=2)
    await work(of_work, clock, 0.0625, 31, version=2)
    assert len(clock.breaths) == 8
    await work(of_work, clock, 0.0625, 80, version=2)
    clock.breaths.clear()
    await work(of_work, clock, 0.0625, 64, version=2)
    assert len(clock.breaths) == 4, "nobody wrote for five seconds"


async def test_where_nobody_waits_there_is_no_breath(clock: Clock) -> None:
    await work(paced(breathes=False), clock, 1.0, 5, version=1)
    assert clock.breaths == []
