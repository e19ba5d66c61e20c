"""Divide a scope into ranges of users and months; work on them.

Each range has about a given number of messages. It holds whole users, or some months of one user who has more messages
than that. A month is never divided.
"""

import asyncio
import functools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, func, select, tuple_

from app.clock import Month
from app.db import failures, ownership
from app.db.database import Database
from models import Message, User, UserMonthlyTokenUsage
from services.backfill.deficits import FIRST_MONTH, LAST_MONTH, Deficits, KeyRange
from services.usage import full_runs
from services.usage.rollups import UserMonth

Item = TypeVar("Item")
Worker = TypeVar("Worker")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Scope:
    """Select users, all if None, and months, both ends included."""

    users: Collection[int] | None = None
    since: Month | None = None
    until: Month | None = None

    @property
    def months(self) -> tuple[Month, Month]:
        """Return the first and the last month of the scope."""
        return self.since or FIRST_MONTH, self.until or LAST_MONTH

    def includes(self, key: UserMonth) -> bool:
        """Return whether a user's month is in the scope."""
        since, until = self.months
        return (self.users is None or key[0] in self.users) and since <= key[1] <= until


@dataclass
class Size:
    """Limit the users and messages of one range.

    The limits may change between two ranges.
    """

    users: int
    messages: int


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
    since, until = scope.months
    month = UserMonthlyTokenUsage
    statement: Select[Any] = select(func.sum(month.message_count))
    is_within: ColumnElement[Any] = tuple_(month.year, month.month).between(since, until)
    owner: ColumnElement[Any] = month.user_id.expression
    if await database.read(full_runs.is_due):
        statement, owner = select(func.count()).select_from(Message), Message.user_id.expression
        is_within = Message.usage_date.between(since.first_day, until.last_day)
    of_users = owner >= lowest_id(database) if scope.users is None else owner.in_(scope.users)
    return int(await database.scalar(statement.where(is_within, of_users)) or 0)


async def cover(database: Database, scope: Scope, size: Size) -> AsyncIterator[KeyRange]:
    """Yield all ranges of a scope, by user and month.

    Together, they contain every possible id, so that orphaned rows are found too. On Citus each range is of one user: a
    range of users would read several snapshots, one of each node.
    """
    async for first, last in _spans(database, scope):
        while first <= last:
            until = last if first == last else await _last_of_range(database, first, last, size)
            if first == until:
                async for part in _months(database, first, scope, size):
                    yield part
            else:
                yield KeyRange(first, until, *scope.months)
            first = until + 1


async def _spans(database: Database, scope: Scope) -> AsyncIterator[tuple[int, int]]:
    if scope.users is not None:
        for user_id in sorted(scope.users):
            yield user_id, user_id
    elif not ownership.is_on_citus(database.engine.dialect):
        yield lowest_id(database), highest_id(database)
    else:  # there, every row has an existing user
        last: int | None = lowest_id(database)
        while (last := await database.scalar(select(func.min(User.id)).where(User.id > last))) is not None:
            yield last, last


async def _last_of_range(database: Database, first: int, last: int, size: Size) -> int:
    """Return the last user of the next range.

    The range holds whole users, or only the first user if that user has more messages than the limit.
    """
    counted = (Message.user_id.between(first, last), Message.usage_date.is_not(None))
    by_key = select(Message.user_id).where(*counted).order_by(Message.user_id, Message.usage_date)
    over = await database.scalar(by_key.offset(size.messages).limit(1))
    last = last if over is None else max(first, over - 1)
    if last - first < size.users:
        return last
    users = select(User.id).where(User.id.between(first, last)).order_by(User.id)
    return await database.scalar(users.offset(size.users - 1).limit(1)) or last


async def _months(database: Database, user_id: int, scope: Scope, size: Size) -> AsyncIterator[KeyRange]:
    since, until = scope.months
    while True:
        counted = (Message.user_id == user_id, Message.usage_date >= since.first_day)
        by_day = select(Message.usage_date).where(*counted).order_by(Message.usage_date)
        over = await database.scalar(by_day.offset(size.messages).limit(1))
        if over is None or Month.of(over) >= until:
            yield KeyRange(user_id, user_id, since, until)
            return
        yield KeyRange(user_id, user_id, since, Month.of(over))
        since = Month.of(over).next()


async def compare(
    ranges: AsyncIterator[KeyRange],
    readers: Sequence[Worker],
    read: Callable[[Worker, KeyRange], Awaitable[Deficits]],
    take: Callable[[KeyRange, Deficits], None],
    leave: Callable[[UserMonth, str], None],
) -> None:
    """Read the deficits of ranges, several at once; take them in order.

    `leave` receives each month that cannot be read, and the reason.
    """

    async def read_in_parts(reader: Worker, key_range: KeyRange) -> Deficits:
        parts = await work_on(key_range, functools.partial(read, reader), leave)
        if len(parts) == 1:
            return parts[0]
        months = {key: pair for part in parts for key, pair in part.months.items()}
        return Deficits(months, {slot: pair for part in parts for slot, pair in part.days.items()})

    await work_through(ranges, readers, read_in_parts, take)


async def work_through(
    items: AsyncIterator[Item],
    workers: Sequence[Worker],
    work: Callable[[Worker, Item], Awaitable[Result]],
    take: Callable[[Item, Result], None],
) -> None:
    """Work on several items at once, each worker on one.

    `take` receives the items and their results in the order of the items.

    Raises:
        Exception: the first error of the items, `work` or `take`. All other work is cancelled.
    """
    running: deque[tuple[Item, asyncio.Future[Result]]] = deque()
    begun = 0

    async def take_first() -> None:
        item, result = running[0]
        take(item, await result)
        running.popleft()

    try:
        async for item in items:
            if len(running) == len(workers):
                await take_first()
            running.append((item, asyncio.ensure_future(work(workers[begun % len(workers)], item))))
            begun += 1
        while running:
            await take_first()
    finally:
        for _, result in running:
            result.cancel()
        await asyncio.gather(*(result for _, result in running), return_exceptions=True)


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
            leave((key_range.first_user, key_range.since), f"it cannot be summed: {failures.describe(error)}")
            return []
    return [result for part in parts for result in await work_on(part, work, leave)]


def _halves(key_range: KeyRange) -> tuple[KeyRange, ...]:
    first, last, since, until = key_range
    if first < last:
        middle = (first + last) // 2
        return key_range._replace(last_user=middle), key_range._replace(first_user=middle + 1)
    if since == until:
        return ()
    number = (12 * (since.year + until.year) + since.month + until.month - 2) // 2
    month = Month(number // 12, number % 12 + 1)
    return key_range._replace(until=month), key_range._replace(since=month.next())
