"""Sum the daily rollup over any range of days."""

from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from models import UserDailyTokenUsage
from services.usage import rollups
from services.usage.rollups import SUMMED, Sums

Day = UserDailyTokenUsage


class DayRange(NamedTuple):
    """Select days, both ends included."""

    first: date
    last: date

    def __len__(self) -> int:
        """Count the days."""
        return (self.last - self.first).days + 1

    def newest_first(self) -> Iterator[date]:
        """Iterate over all days."""
        return (self.last - timedelta(days=back) for back in range(len(self)))


async def by_day(session: AsyncSession, within: DayRange, user_id: int | None = None) -> dict[date, Sums]:
    """Sum each day with usage, newest first; of all users without `user_id`."""
    rows = await _sums(session, Day.usage_date, within, user_id)
    return dict(sorted(rows, reverse=True, key=lambda row: row[0]))


async def by_model(session: AsyncSession, within: DayRange, user_id: int | None = None) -> dict[str, Sums]:
    """Sum each model with usage, the most expensive first.

    Without `user_id`, of all users. The name is empty for messages without a model.
    """
    rows = await _sums(session, Day.model, within, user_id)
    return dict(sorted(rows, key=lambda row: (-row[1].total_cost, -row[1].total_tokens, row[0])))


def added(parts: Iterable[Sums]) -> Sums:
    """Add up sums, exactly."""
    total = Sums()
    for part in parts:
        total.add(part)
    return total


async def _sums(
    session: AsyncSession, key: InstrumentedAttribute[Any], within: DayRange, user_id: int | None
) -> list[tuple[Any, Sums]]:
    of_user = () if user_id is None else (Day.user_id == user_id,)
    statement = (
        select(key, *(rollups.total(name, getattr(Day, name)) for name in SUMMED))
        .where(Day.usage_date.between(within.first, within.last), *of_user)
        .group_by(key)
        .having(func.sum(Day.message_count) > 0)
    )
    return [(row[0], Sums(*row[1:])) for row in await session.execute(statement)]
