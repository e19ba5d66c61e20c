"""Correct the rollups: add sums, possibly negative, to existing rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Table, bindparam, delete, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from services.usage.rollups import DAYS, MONTHS, SUMMED, Slot, Sums, UserMonth, grouped

# An upsert cannot do this: the database's constraints refuse the INSERT of negative figures.


async def remove(session: AsyncSession, freed: Mapping[Slot, Sums]) -> None:
    """Subtract sums from both rollups; delete rows that become zero."""
    nothing = Sums()
    await adjust_days(session, {slot: nothing - sums for slot, sums in freed.items()})
    await adjust_months(session, grouped((slot.month, nothing - sums) for slot, sums in freed.items()))


async def adjust_days(session: AsyncSession, days: Mapping[Slot, Sums]) -> None:
    """Add sums to existing days; delete days that become zero."""
    rows = [_named(slot._asdict(), sums) for slot, sums in sorted(days.items(), key=lambda item: item[0])]
    await _adjust(session, DAYS, Slot._fields, rows)


async def adjust_months(session: AsyncSession, months: Mapping[UserMonth, Sums]) -> None:
    """Add sums to existing months; delete months that become zero."""
    rows = [
        _named({"user_id": user_id, **month._asdict()}, sums)
        for (user_id, month), sums in sorted(months.items(), key=lambda item: item[0])
    ]
    total = MONTHS.c.total_tokens + bindparam("more_input_tokens") + bindparam("more_output_tokens")
    await _adjust(session, MONTHS, ("user_id", "year", "month"), rows, total_tokens=total, last_updated=clock.now())


def _named(key: Mapping[str, Any], sums: Sums) -> dict[str, Any]:
    more = {f"more_{name}": figure for name, figure in sums.values().items()}
    return {**{f"this_{name}": part for name, part in key.items()}, **more}


async def _adjust(
    session: AsyncSession, table: Table, keys: Sequence[str], rows: list[dict[str, Any]], **more: Any
) -> None:
    if not rows:
        return
    here: list[ColumnElement[bool]] = [table.c[name] == bindparam(f"this_{name}") for name in keys]
    changed = {name: table.c[name] + bindparam(f"more_{name}", type_=table.c[name].type) for name in SUMMED}
    connection = await session.connection()
    await connection.execute(update(table).where(*here).values(changed | more), rows)
    nothing_left = [table.c[name] == 0 for name in SUMMED if name != "total_cost"]
    await connection.execute(delete(table).where(*here, *nothing_left, table.c.total_cost == Sums().total_cost), rows)
