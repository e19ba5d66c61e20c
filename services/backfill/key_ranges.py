"""Ranges of users and months that cover a scope one after the other, each with about a given number of messages.

A range holds whole users, or some months of one user who has more messages than that; a month is never divided.
"""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from datetime import date

from sqlalchemy import select

from app.clock import Month
from app.db.database import Database
from models import Message, User
from services.backfill.deficits import FIRST_DAY, LAST_DAY, KeyRange


@dataclass(frozen=True)
class Scope:
    """Which users (all where None) and which months, both ends included."""

    users: Collection[int] | None = None
    since: Month | None = None
    until: Month | None = None

    def includes(self, month: Month) -> bool:
        """Whether a month is in the scope."""
        return (self.since is None or self.since <= month) and (self.until is None or month <= self.until)

    def days(self) -> tuple[date, date]:
        """The first and the last day of it."""
        return (
            self.since.first_day if self.since else FIRST_DAY,
            self.until.last_day if self.until else LAST_DAY,
        )


@dataclass
class Size:
    """How much one range holds at most; may be changed while ranges are taken."""

    users: int
    messages: int
    by_messages: bool = True
    """Whether messages say whose they are; in an old database they do not yet."""


def lowest_id(database: Database) -> int:
    """No id is lower: of 64 bits on SQLite, whatever a column is said to be; users of PostgreSQL have 32."""
    return -(2**63 if database.engine.dialect.name == "sqlite" else 2**31)


def highest_id(database: Database) -> int:
    """No id is higher."""
    return -lowest_id(database) - 1


async def cover(database: Database, scope: Scope, size: Size) -> AsyncIterator[KeyRange]:
    """All ranges of a scope, by user and month; together they leave out no id, so that also orphans are found."""
    everyone = [(lowest_id(database), highest_id(database))]
    spans = everyone if scope.users is None else [(user_id, user_id) for user_id in sorted(scope.users)]
    for first, last in spans:
        while first <= last:
            until = await _last_of_range(database, first, last, size)
            if first == until and size.by_messages:
                async for part in _months(database, first, scope, size):
                    yield part
            else:
                yield KeyRange(first, until, scope.since, scope.until)
            first = until + 1


async def _last_of_range(database: Database, first: int, last: int, size: Size) -> int:
    """Of the next whole users; of a single one if that one has more messages than a range may hold."""
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
