"""The pace of long work, by a clock of the test's own."""

from types import SimpleNamespace

import pytest

from app.database import Database
from services import pace
from services.pace import Pace
from tests.test_backfill import add_users


class Clock:
    """Stands still, but for what the test or a breath takes; keeps the moments of the breaths."""

    def __init__(self) -> None:
        self.now = 100.0
        self.breaths: list[float] = []
        self.slept: list[float] = []
        self.written = 0
        self.others_write = False

    async def sleep(self, seconds: float) -> None:
        self.breaths.append(self.now)
        self.slept.append(seconds)
        self.now += seconds
        self.written += self.others_write

    async def version(self) -> int:
        return self.written


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(pace, "asyncio", SimpleNamespace(sleep=clock.sleep))
    return clock


def paced(clock: Clock, breathes: bool = True) -> Pace:
    version = clock.version if breathes else None
    return Pace(rows=1000, least=500, most=20_000, target_seconds=0.125, version=version)


async def work(pace_: Pace, clock: Clock, seconds: float, batches: int, reading: float = 0.0) -> None:
    for _ in range(batches):
        pace_.begin()
        clock.now += seconds
        await pace_.end()
        clock.now += reading
        clock.written += clock.others_write and reading > 0
        await pace_.breathe()


async def test_a_transaction_that_takes_long_makes_the_next_ones_smaller_and_a_quick_one_larger(clock: Clock) -> None:
    of_work = paced(clock, breathes=False)
    await work(of_work, clock, 0.125, 1)
    assert of_work.rows == 1000
    await work(of_work, clock, 0.15625, 1)
    assert of_work.rows == 800
    await work(of_work, clock, 9.9, 5)
    assert of_work.rows == 500, "the least"
    await work(of_work, clock, 0.01, 20)
    assert of_work.rows == 20_000, "the most"


async def test_where_there_are_no_others_who_would_wait_a_transaction_may_take_longer(clock: Clock) -> None:
    of_work = paced(clock)
    await work(of_work, clock, 1.25, 1)
    assert of_work.rows == 1000
    of_work.rows = 10_000
    clock.others_write = True
    await work(of_work, clock, 1.25, 1)
    assert of_work.rows == 1000, "they wrote after it: the next is smaller at once"
    await work(of_work, clock, 0.15625, 1)
    assert of_work.rows == 800


async def test_writers_get_their_turn_once_a_second_and_more_often_while_there_are_any(clock: Clock) -> None:
    of_work = paced(clock)
    await work(of_work, clock, 0.0625, 64)
    assert len(clock.breaths) == 4
    clock.others_write = True
    await work(of_work, clock, 0.0625, 16)
    clock.breaths.clear()
    await work(of_work, clock, 0.0625, 32)
    assert len(clock.breaths) == 8
    clock.others_write = False
    await work(of_work, clock, 0.0625, 80)
    clock.breaths.clear()
    await work(of_work, clock, 0.0625, 64)
    assert len(clock.breaths) == 4, "nobody wrote for five seconds"


async def test_a_long_transaction_has_a_breath_after_it_where_the_next_would_take_too_long(clock: Clock) -> None:
    of_work = paced(clock)
    await work(of_work, clock, 0.75, 3)
    assert len(clock.breaths) == 3


async def test_while_something_was_read_others_had_their_turn_already(clock: Clock) -> None:
    of_work = paced(clock)
    for reading, missing in ((0.25, []), (0.0625, [pytest.approx(pace.BREATH_SECONDS - 0.0625)])):
        await work(of_work, clock, 1.0, 1, reading)
        assert clock.slept == missing


async def test_whoever_wrote_while_something_was_read_is_seen(clock: Clock) -> None:
    of_work = paced(clock)
    await work(of_work, clock, 0.0625, 1, 0.0625)
    assert of_work.is_alone
    clock.others_write = True
    await work(of_work, clock, 0.0625, 1, 0.0625)
    assert not of_work.is_alone
    assert clock.breaths == []


async def test_where_nobody_waits_there_is_no_breath(clock: Clock) -> None:
    await work(paced(clock, breathes=False), clock, 1.0, 5)
    assert clock.breaths == []


async def test_what_another_connection_writes_during_a_breath_is_seen(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    others_write = False

    async def sleep(_seconds: float) -> None:
        if others_write:
            await add_users(database, 1)

    monkeypatch.setattr(pace, "asyncio", SimpleNamespace(sleep=sleep))
    seen = []
    async with Pace.on(database, 1000, 500, 20_000, 0.125) as of_work:
        for others_write in (False, True):  # noqa: B007 - `sleep` looks at it
            of_work._breathed = -1.0
            await of_work.breathe()
            seen.append(of_work._others_wrote > 0)
    assert seen == [False, database.engine.dialect.name == "sqlite"]
