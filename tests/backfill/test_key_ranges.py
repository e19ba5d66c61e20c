"""Divide a scope into ranges, and leave out only the months whose data is broken."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import select

from app.clock import Month
from app.db.database import Database
from models import Message, User
from services.backfill import key_ranges
from services.backfill.deficits import FIRST_MONTH, LAST_MONTH, KeyRange
from services.backfill.key_ranges import Scope, Size
from tests.support import raw_sql
from tests.support.old_copies import OldCopy

KEYS = st.tuples(st.integers(-5, 40), st.builds(Month, st.integers(1, 9999), st.integers(1, 12)))
KeySet = frozenset[tuple[int, Month]]


@pytest.fixture
def adopted_url(old_copy: OldCopy) -> str:
    """An old database whose messages are adopted; between the ids of its users there are gaps, after the fifth."""
    old = old_copy(3, "--quiet", rows=150)
    raw_sql.run(
        old.url,
        "INSERT INTO users (id, username, email, hashed_password, role, is_active)"
        " VALUES (4, 'user04', 'user04@example.com', '!', 'user', true)",
        "UPDATE messages SET user_id = 4 WHERE user_id = 5",
        "UPDATE messages SET user_id = 5 WHERE user_id = 8",
    )
    return old.url


@pytest.mark.parametrize(
    ("users", "messages"),
    [(1, 10_000), (2, 10_000), (4, 10_000), (10_000, 10_000), (1, 40), (2, 40), (3, 12), (10_000, 25), (10_000, 1)],
)
@pytest.mark.sampled(4)
async def test_ranges_are_everything_and_each_is_small_enough(adopted_url: str, users: int, messages: int) -> None:
    database = Database.open(adopted_url)
    size = Size(users, messages)
    ranges = [item async for item in key_ranges.cover(database, Scope(), size)]
    async with database.reads() as session:
        user_ids = (await session.scalars(select(User.id))).all()
        days = await session.execute(select(Message.user_id, Message.usage_date))
        counts = Counter((user, Month.of(day)) for user, day in days if user is not None and day is not None)
    await database.close()

    assert (ranges[0].first_user, ranges[0].since) == (key_ranges.lowest_id(database), FIRST_MONTH)
    assert (ranges[-1].last_user, ranges[-1].until) == (key_ranges.highest_id(database), LAST_MONTH)
    for before, after in pairwise(ranges):
        if before.until == LAST_MONTH:
            assert (after.first_user, after.since) == (before.last_user + 1, FIRST_MONTH)
        else:
            assert after.first_user == after.last_user == before.last_user
            assert after.since == before.until.next()
    for item in ranges:
        assert sum(item.first_user <= user <= item.last_user for user in user_ids) <= users
        held = [month for user, month in counts if _holds(item, user, month)]
        count = sum(counts[key] for key in counts if _holds(item, *key))
        if item.first_user == item.last_user and held:  # a month is never divided
            count -= counts[item.first_user, max(held)]
        assert count <= messages


def _holds(item: KeyRange, user: int, month: Month) -> bool:
    since, until = item.since or Month(1, 1), item.until or Month(9999, 12)
    return item.first_user <= user <= item.last_user and since <= month <= until


def holds(key_range: KeyRange, key: tuple[int, Month]) -> bool:
    user, month = key
    since, until = key_range.since or Month(1, 1), key_range.until or Month(9999, 12)
    return key_range.first_user <= user <= key_range.last_user and since <= month <= until


@given(st.frozensets(KEYS, max_size=4), st.frozensets(KEYS, max_size=4))
@example(frozenset(), frozenset({(-5, Month(1, 1)), (40, Month(9999, 12))}))
async def test_each_month_is_done_once_or_left(good: KeySet, bad: KeySet) -> None:
    left: dict[tuple[int, Month], str] = {}

    async def work(key_range: KeyRange) -> list[tuple[int, Month]]:
        if any(holds(key_range, key) for key in bad):
            raise ArithmeticError("too much")
        return [key for key in good if holds(key_range, key)]

    parts = await key_ranges.work_on(KeyRange(-5, 40), work, left.__setitem__)
    assert left == dict.fromkeys(bad, "it cannot be summed: too much")
    assert sorted(key for part in parts for key in part) == sorted(good - bad)


async def test_what_does_not_come_from_the_data_is_raised() -> None:
    async def work(_key_range: KeyRange) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await key_ranges.work_on(KeyRange(1, 9), work, lambda *_: None)
