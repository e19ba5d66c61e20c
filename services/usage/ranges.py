"""Sum the daily rollup over any range of days."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, func, select, type_coerce
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from app import money
from app.db.database import is_sqlite
from models import UserDailyTokenUsage
from services.usage.rollups import SUMMED, Sums

Day = UserDailyTokenUsage

_HALF = 2**32


@dataclass(frozen=True)
class DayRange:
    """Select days, both ends included."""

    first: date
    last: date

    @property
    def length(self) -> int:
        """Count the days."""
        return (self.last - self.first).days + 1

    def newest_first(self) -> Iterator[date]:
        """Iterate over all days."""
        return (self.last - timedelta(days=back) for back in range(self.length))


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
    halves = is_sqlite(session)
    statement = (
        select(key, *(part for name in SUMMED for part in _parts(name, halves)))
        .where(Day.usage_date.between(within.first, within.last), *of_user)
        .group_by(key)
        .having(func.max(Day.message_count) > 0)
    )
    return [(row[0], Sums(*_figures(row[1:], halves))) for row in await session.execute(statement)]


def _parts(name: str, halves: bool) -> tuple[ColumnElement[Any], ...]:
    """Sum a figure; on SQLite in two halves.

    SQLite's sums are limited to 64 bits.
    """
    column = getattr(Day, name)
    if not halves:
        return (func.sum(column),)
    stored = type_coerce(column, BigInteger)
    return func.sum(stored.op("/")(_HALF)), func.sum(stored.op("%")(_HALF))


def _figures(parts: Sequence[Any], halves: bool) -> list[Any]:
    if not halves:
        return [part if name == "total_cost" else int(part) for name, part in zip(SUMMED, parts, strict=True)]
    wholes = [high * _HALF + low for high, low in zip(parts[::2], parts[1::2], strict=True)]
    return [
        money.of_units(whole) if name == "total_cost" else whole for name, whole in zip(SUMMED, wholes, strict=True)
    ]
