"""Divide a scope into ranges of users and months; work on them.

Each range has about a given number of messages. It holds whole users, or some months of one user who has more messages
than that. A month is never divided.
"""

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.clock import Month
from app.db import failures, ownership
from app.db.database import Database
from models import Message, User, UserMonthlyTokenUsage
from services.backfill.deficits import FIRST_DAY, LAST_DAY, KeyRange
from services.usage import full_runs
from services.usage.rollups import UserMonth

Result = TypeVar("Result")
_FIRST, _LAST = Month(1, 1), Month(9999, 12)
_USERS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Scope:
    """Select users, all if None, and months, both ends included."""

    users: Collection[int] | None = None
    since: Month | None = None
    until: Month | None = None

    def includes(self, month: Month) -> bool:
        """Return whether a month is in the scope."""
        return (self.since is None or self.since <= month) and (self.until is None or month <= self.until)

    def days(self) -> tuple[date, date]:
        """Return the first and the last day of the scope."""
        return (
            self.since.first_day if self.since else FIRST_DAY,
            self.until.last_day if self.until else LAST_DAY,
        )


@dataclass
class Size:
    """Limit the users and messages of one range.

    The limits may change between two ranges.
    """

    users: int
    messages: int
    by_messages: bool = True
    """Whether messages have a `user_id`; messages of an old database do not."""


def lowest_id(database: Database) -> int:
    """Return the lowest possible id of a user.

    An id has 64 bits on SQLite, regardless of the declared type, and 32 bits on PostgreSQL.
    """
    return -(2**63 if database.engine.dialect.name == "sqlite" else 2**31)


def highest_id(database: Database) -> int:
    """Return the highest possible id of a user."""
    return -lowest_id(database) - 1


async def messages_in(database: Database, scope: Scope) -> int:
    """Return how many counted messages the scope has, for the progress.

    The number comes from the monthly rollup if a full run has filled it, which is faster.
    """
    since, until = scope.days()
    statement = select(func.count()).select_from(Message).where(Message.usage_date.between(since, until))
    owner: ColumnElement[Any] = Message.user_id.expression
    if not await database.read(full_runs.is_due):
        month = UserMonthlyTokenUsage
        within = tuple_(month.year, month.month).between((since.year, since.month), (until.year, until.month))
        statement = select(func.sum(month.message_count)).where(within)
        owner = month.user_id.expression
    of_users = owner >= lowest_id(database) if scope.users is None else owner.in_(scope.users)
    return int(await database.scalar(statement.where(of_users)) or 0)


async def cover(database: Database, scope: Scope, size: Size) -> AsyncIterator[KeyRange]:
    """Yield all ranges of a scope, by user and month.

    Together, they contain every possible id, so that orphaned rows are found too. On Citus each range is of one user: a
    range of users would read several snapshots, one of each node.
    """
    async for first, last in _spans(database, scope):
        while first <= last:
            until = last if first == last else await _last_of_range(database, first, last, size)
            if first == until and size.by_messages:
                async for part in _months(database, first, scope, size):
                    yield part
            else:
                yield KeyRange(first, until, scope.since, scope.until)
            first = until + 1


async def _spans(database: Database, scope: Scope) -> AsyncIterator[tuple[int, int]]:
    if scope.users is not None:
        for user_id in sorted(scope.users):
            yield user_id, user_id
    elif not ownership.is_on_citus(database.engine.dialect):
        yield lowest_id(database), highest_id(database)
    else:  # there, every row has an existing user
        after_id = lowest_id(database)
        while ids := await database.read(functools.partial(_next_users, after_id=after_id)):
            for user_id in ids:
                yield user_id, user_id
            after_id = ids[-1]


async def _next_users(session: AsyncSession, after_id: int) -> Sequence[int]:
    next_ids = select(User.id).where(User.id > after_id).order_by(User.id).limit(_USERS_AT_ONCE)
    return (await session.scalars(next_ids)).all()


async def _last_of_range(database: Database, first: int, last: int, size: Size) -> int:
    """Return the last user of the next range.

    The range holds whole users, or only the first user if that user has more messages than the limit.
    """
    if size.by_messages:
        counted = (Message.user_id.between(first, last), Message.usage_date.is_not(None))
        by_key = select(Message.user_id).where(*counted).order_by(Message.user_id, Message.usage_date)
        over = await database.scalar(by_key.offset(size.messages).limit(1))
        last = last if over is None else max(first, over - 1)
    if last - first < size.users:
        return last
    users = select(User.id).where(User.id.between(first, last)).order_by(User.id)
    return await database.scalar(users.offset(size.users - 1).limit(1)) or last


async def _months(database: Database, user_id: int, scope: Scope, size: Size) -> AsyncIterator[KeyRange]:
    since = scope.since
    while True:
        start = since.first_day if since else FIRST_DAY
        counted = (Message.user_id == user_id, Message.usage_date.between(start, LAST_DAY))
        by_day = select(Message.usage_date).where(*counted).order_by(Message.usage_date)
        over = await database.scalar(by_day.offset(size.messages).limit(1))
        end = Month.of(over) if over is not None else None
        if end is None or end >= (scope.until or Month.of(LAST_DAY)):
            yield KeyRange(user_id, user_id, since, scope.until)
            return
        yield KeyRange(user_id, user_id, since, end)
        since = end.next()


async def work_on(
    key_range: KeyRange, work: Callable[[KeyRange], Awaitable[Result]], leave: Callable[[UserMonth, str], None]
) -> list[Result]:
    """Work on a range; halve the range if its data raises.

    The smallest part is one month of one user, so that one bad month does not stop the work on all other months.

    Args:
        key_range: the whole range.
        work: the work on a range. It must be safe to repeat after it raised.
        leave: receives each month on which the work fails, and the reason.

    Returns:
        The result of each part.

    Raises:
        Exception: an error of the work that the data did not cause.
    """
    try:
        return [await work(key_range)]
    except Exception as error:
        if not failures.is_of_data(error):
            raise
        parts = _halves(key_range)
        if not parts:
            leave(
                (key_range.first_user, key_range.since or _FIRST),
                f"it cannot be summed: {failures.describe(error)}",
            )
            return []
    return [result for part in parts for result in await work_on(part, work, leave)]


def _halves(key_range: KeyRange) -> tuple[KeyRange, ...]:
    first, last, since, until = key_range
    if first < last:
        middle = (first + last) // 2
        return key_range._replace(last_user=middle), key_range._replace(first_user=middle + 1)
    low, high = (12 * month.year + month.month - 1 for month in (since or _FIRST, until or _LAST))
    if low == high:
        return ()
    months = [Month(number // 12, number % 12 + 1) for number in (low, (low + high) // 2, (low + high) // 2 + 1, high)]
    return key_range._replace(since=months[0], until=months[1]), key_range._replace(since=months[2], until=months[3])
