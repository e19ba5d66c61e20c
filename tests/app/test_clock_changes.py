"""Limits while the clock is wrong: a window opened in a future that never came does not lock callers out."""

from datetime import datetime, timedelta

import pytest
from sqlalchemy import select

from app import clock
from app.db.database import Database, Session
from app.errors import TooManyRequests
from models import Attempt
from services.accounts import attempts
from services.accounts.attempts import Limit

WINDOW = timedelta(minutes=15)
LIMIT = Limit(attempts.key("a"), 2, WINDOW)
OTHER = Limit(attempts.key("b"), 2, WINDOW)


class Clock:
    """A clock that is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.true = clock.now()
        self.error = timedelta()
        monkeypatch.setattr(clock, "now", self.now)

    def now(self) -> datetime:
        return self.true + self.error


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock, which is right until a test changes that."""
    return Clock(monkeypatch)


async def attempt(database: Database, limit: Limit = LIMIT) -> int:
    """Try once; return 0, or the seconds until the next try."""

    async def work(session: Session) -> None:
        await attempts.count(session, [limit])

    try:
        await database.transaction(work)
    except TooManyRequests as error:
        return int(error.headers["Retry-After"])
    return 0


@pytest.mark.parametrize("ahead", [timedelta(minutes=2), timedelta(hours=1), timedelta(days=36_500)])
async def test_a_window_of_a_future_that_never_came_is_over(
    database: Database, set_clock: Clock, ahead: timedelta
) -> None:
    set_clock.error = ahead
    tried = [await attempt(database) for _ in range(3)]
    assert tried == [0, 0, WINDOW.total_seconds()]
    set_clock.error = timedelta()
    tried = [await attempt(database) for _ in range(3)]
    assert tried == [0, 0, WINDOW.total_seconds()]


async def test_a_clock_set_back_lengthens_no_window(database: Database, set_clock: Clock) -> None:
    assert [await attempt(database) for _ in range(3)] == [0, 0, WINDOW.total_seconds()]
    set_clock.error = -timedelta(days=1)
    assert [await attempt(database) for _ in range(3)] == [0, 0, WINDOW.total_seconds()]
    set_clock.error += WINDOW
    assert await attempt(database) == 0


async def test_a_clock_that_is_right_ends_a_window_in_its_time(database: Database, set_clock: Clock) -> None:
    assert [await attempt(database) for _ in range(2)] == [0, 0]
    set_clock.error = WINDOW - timedelta(seconds=1)
    assert await attempt(database) == 1
    set_clock.error = WINDOW
    assert await attempt(database) == 0


async def test_clocks_that_differ_a_little_share_a_window(database: Database, set_clock: Clock) -> None:
    tried = []
    for seconds in (30, 0, 20, 0):
        set_clock.error = timedelta(seconds=seconds)
        tried.append(await attempt(database) == 0)
    assert tried == [True, True, False, False]


async def test_a_mark_of_a_future_that_never_came_is_none(database: Database, set_clock: Clock) -> None:
    async def remember(session: Session) -> None:
        await attempts.remember(session, "mark", WINDOW)

    async def remembers(session: Session) -> bool:
        return await attempts.remembers(session, "mark", WINDOW)

    set_clock.error = timedelta(days=400)
    await database.transaction(remember)
    assert await database.read(remembers)
    set_clock.error = timedelta()
    assert not await database.read(remembers)
    await database.transaction(remember)
    assert await database.read(remembers)


async def test_windows_of_the_far_future_are_swept(database: Database, set_clock: Clock) -> None:
    set_clock.error = timedelta(days=400)
    await attempt(database)
    set_clock.error = timedelta()
    await attempt(database, OTHER)
    async with database.reads() as session:
        assert list(await session.scalars(select(Attempt.key))) == [OTHER.key]
