"""Explain differences between an earlier backend's months and the ledger.

The earlier backend dated months in UTC; the ledger may use another time zone.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo

from sqlalchemy import extract, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.clock import Month
from models import Message
from services.backfill import adoption
from services.backfill.adoption import Finding, Shape
from services.usage.rollups import Sums, UserMonth

_UTC = ZoneInfo("UTC")
# The UTC date of an instant differs from its date in another time zone by at most one day.
_DAYS_AT_THE_EDGES = (1, 28, 29, 30, 31)


@dataclass
class Differences:
    """Hold why old months differ from the ledger without deleted messages."""

    moved: dict[UserMonth, Sums] = field(default_factory=dict)
    """The sums of the old rows of the UTC month, minus those of the month in the time zone."""
    uncountable: Counter[UserMonth] = field(default_factory=Counter)
    """The number of rows of the UTC month that break a rule, which no sum includes."""

    def move(self, before: UserMonth, after: UserMonth, sums: Sums) -> None:
        """Move a row from its UTC month to its time-zone month."""
        if before != after:
            self.moved.setdefault(before, Sums()).add(sums)
            self.moved[after] = self.moved.get(after, Sums()) - sums

    def add(self, rows: Iterable[tuple[Finding, Finding]]) -> None:
        """Add rows that are not adopted.

        Each row was examined twice: dated in UTC, and in the time zone.
        """
        for by_utc, by_zone in rows:
            if by_utc.usage is not None and by_utc.month is not None and by_zone.month is not None:
                self.move(by_utc.month, by_zone.month, by_utc.usage.sums())
            elif by_utc.reason is not None and by_utc.month is not None:
                self.uncountable[by_utc.month] += 1


async def differences(session: AsyncSession, shape: Shape, users: Collection[int] | None, zone: tzinfo) -> Differences:
    """Read the differences. `users` is None for all users."""
    found = Differences()
    async for row in adoption.rows(session, shape, users):
        found.add([(adoption.examine(row, _UTC), adoption.examine(row, zone))])
    if shape.is_adopted and zone != _UTC:
        await _add_adopted(session, users, zone, found)
    return found


async def _add_adopted(session: AsyncSession, users: Collection[int] | None, zone: tzinfo, found: Differences) -> None:
    columns = (Message.user_id, Message.created_at, Message.usage_date)
    figures = (Message.input_tokens, Message.output_tokens, Message.cost)
    old = (Message.status.is_(None), extract("day", Message.usage_date).in_(_DAYS_AT_THE_EDGES))
    statement = select(*columns, *figures).where(Message.usage_date.is_not(None), *old)
    if users is not None:
        statement = statement.where(Message.user_id.in_(users))
    rows = await session.stream(statement.execution_options(yield_per=adoption.BATCH_ROWS))
    async for row in rows:
        before = Month.of(clock.usage_date(row.created_at, UTC))
        sums = Sums.of_message(row.input_tokens, row.output_tokens, row.cost)
        found.move((row.user_id, before), (row.user_id, Month.of(row.usage_date)), sums)
