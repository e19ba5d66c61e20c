"""Corrections of the rollups: sums that may be negative, added to rows that are there. For the script alone."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Table, bindparam, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock, money
from services.rollups import CONVERSATION_DAYS, DAYS, MONTHS, SUMMED, Slot, Sums, UserDay, UserMonth, grouped


async def adjust_months(session: AsyncSession, months: Mapping[UserMonth, Sums]) -> None:
    """Adds sums, which may be negative, to months that are there; a month of which nothing is left goes.

    Not an upsert as `rollups.add` is, since the checks of the database would refuse the INSERT of something negative.
    """
    rows = [
        {"the_user": user_id, "the_year": month.year, "the_month": month.month, **_more(sums)}
        for (user_id, month), sums in sorted(months.items())
    ]
    here = (
        MONTHS.c.user_id == bindparam("the_user"),
        MONTHS.c.year == bindparam("the_year"),
        MONTHS.c.month == bindparam("the_month"),
    )
    both = {"total_tokens": MONTHS.c.total_tokens + bindparam("more_input_tokens") + bindparam("more_output_tokens")}
    await _adjust(session, MONTHS, here, rows, **both, last_updated=clock.now())


async def remove(session: AsyncSession, freed: Mapping[Slot, Sums]) -> None:
    """Takes what is counted no more in these places from all rollups; rows of which nothing is left go.

    For `--redate`: no live traffic of these users goes on beside it.
    """
    slots = [{**_named(slot.day), "the_talk": slot.conversation_id, **_more(-s)} for slot, s in sorted(freed.items())]
    here = _on_day(CONVERSATION_DAYS)
    talk = CONVERSATION_DAYS.c.conversation_id == bindparam("the_talk")
    await _adjust(session, CONVERSATION_DAYS, (*here, talk), slots)
    days = grouped((slot.day, -sums) for slot, sums in freed.items())
    await _adjust(session, DAYS, _on_day(DAYS), [{**_named(day), **_more(s)} for day, s in sorted(days.items())])
    await _recount_conversations(session, days)
    await adjust_months(session, grouped((slot.month, -sums) for slot, sums in freed.items()))


async def _recount_conversations(session: AsyncSession, days: Iterable[UserDay]) -> None:
    """Counts the conversations of days anew, from the rollup by conversation."""
    talks = select(func.count()).where(
        CONVERSATION_DAYS.c.user_id == DAYS.c.user_id,
        CONVERSATION_DAYS.c.usage_date == DAYS.c.usage_date,
        CONVERSATION_DAYS.c.conversation_id != "",
    )
    statement = update(DAYS).where(*_on_day(DAYS)).values(conversation_count=talks.scalar_subquery())
    if rows := [_named(day) for day in sorted(days)]:
        await (await session.connection()).execute(statement, rows)


def _named(day: UserDay) -> dict[str, Any]:
    return {"the_user": day[0], "the_day": day[1]}


def _on_day(table: Table) -> tuple[Any, ...]:
    return table.c.user_id == bindparam("the_user"), table.c.usage_date == bindparam("the_day")


def _more(sums: Sums) -> dict[str, Any]:
    return {f"more_{name}": getattr(sums, name) for name in SUMMED}


async def _adjust(
    session: AsyncSession, table: Table, here: tuple[Any, ...], rows: list[dict[str, Any]], **more: Any
) -> None:
    if not rows:
        return
    changed = {name: table.c[name] + bindparam(f"more_{name}", type_=table.c[name].type) for name in SUMMED}
    connection = await session.connection()
    await connection.execute(update(table).where(*here).values(changed | more), rows)
    nothing_left = [table.c[name] == 0 for name in SUMMED if name != "total_cost"]
    await connection.execute(delete(table).where(*here, *nothing_left, table.c.total_cost == money.ZERO), rows)
