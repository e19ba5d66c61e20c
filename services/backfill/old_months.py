"""The months of an earlier backend, which counted by UTC, beside a ledger that is dated in another time zone."""

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
# The UTC date of an instant is its date in any other zone, or a neighbour of it.
_DAYS_AT_THE_EDGES = (1, 28, 29, 30, 31)


@dataclass
class Differences:
    """What keeps an old month from being the ledger sum of the same month, though no message was deleted."""

    moved: dict[UserMonth, Sums] = field(default_factory=dict)
    """The old rows of the UTC month minus those of the month in the time zone."""
    uncountable: Counter[UserMonth] = field(default_factory=Counter)
    """How many rows of the UTC month break a rule, and so are in no sum."""

    def move(self, before: UserMonth, after: UserMonth, sums: Sums) -> None:
        """Note that a row belongs to the second month in the time zone, to the first in UTC."""
        if before != after:
            self.moved.setdefault(before, Sums()).add(sums)
            self.moved[after] = self.moved.get(after, Sums()) - sums

    def add(self, rows: Iterable[tuple[Finding, Finding]]) -> None:
        """Note rows that are not adopted, each judged by UTC and by the time zone."""
        for by_utc, by_zone in rows:
            if by_utc.usage is not None and by_utc.month is not None and by_zone.month is not None:
                self.move(by_utc.month, by_zone.month, by_utc.usage.sums())
            elif by_utc.reason is not None and by_utc.month is not None:
                self.uncountable[by_utc.month] += 1


async def differences(session: AsyncSession, shape: Shape, users: Collection[int] | None, zone: tzinfo) -> Differences:
    """Read the differences; of all users where None."""
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
