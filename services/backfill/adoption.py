"""Adopt old rows: plain rows by one statement, others one by one.

A row is plain if its figures are valid. Both ways follow the rules of `old_rows`. SQLite's statement calls them as
functions, unless a text holds its day, or a cost is not near a rounding tie at 1e-10 dollars. PostgreSQL's receives the
instants at which days begin, and leaves out costs near a tie, where decimal and binary rounding could differ.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import ARRAY, BindParameter, Date, DateTime, TextClause, bindparam, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock, money
from models import Message
from models.messages import MAX_TOKENS
from services.backfill import old_rows
from services.backfill.old_rows import MESSAGES, Finding, OldRows, Reason

FIRST_DAY = date(2015, 1, 1)
"""On PostgreSQL, older rows are adopted one by one."""


class Batch(NamedTuple):
    """Describe an adopted batch: last id, number of rows, and skip reasons."""

    last_id: int
    rows: int
    skipped: Counter[Reason]


async def adopt_batch(session: AsyncSession, old: OldRows, after_id: int, limit: int) -> Batch | None:
    """Adopt the next rows in the caller's transaction.

    Returns:
        The batch, or None if no rows follow `after_id`.
    """
    ids = old_rows.ids(old).where(MESSAGES.c.id > after_id).limit(limit).subquery().c.id
    last_id, rows = (await session.execute(select(func.max(ids), func.count(ids)))).one()
    if last_id is None:
        return None
    odd_rows = old_rows.statement(old).where(MESSAGES.c.id > after_id, MESSAGES.c.id <= last_id)
    if not old.is_owned:  # Citus cannot lock the rows of several users; only runs write these, one at a time
        await _adopt_plain_rows(session, old, after_id, last_id)
        odd_rows = odd_rows.with_for_update(of=MESSAGES)
    found = [old_rows.examine(row, old.zone) for row in await session.execute(odd_rows)]
    await _store(session, [finding for finding in found if finding.user_id is not None], old.is_owned)
    return Batch(last_id, rows, Counter(finding.reason for finding in found if finding.reason is not None))


async def _adopt_plain_rows(session: AsyncSession, old: OldRows, after_id: int, last_id: int) -> None:
    values: dict[str, Any] = {"after_id": after_id, "last_id": last_id, "max_tokens": MAX_TOKENS}
    if old.users is not None:
        values["users"] = list(old.users)
    if old.is_sqlite:
        driver: Any = (await (await session.connection()).get_raw_connection()).driver_connection
        for name, function in sqlite_functions(old.zone).items():
            await driver.create_function(name, 1, function, deterministic=True)
    else:
        values |= _days(old.zone, clock.now().date())
    await session.execute(_adopting(old), values)


_ADOPTING = """
    UPDATE messages SET user_id = p.owner, usage_date = p.usage_date, cost = p.cost FROM (
        SELECT m.id, u.id AS owner, {carries} AS carries, m.input_tokens, coalesce(m.output_tokens, 0) AS output_tokens,
            CASE WHEN {carries} THEN {usage_date} END AS usage_date,
            {model_cost} AS model_cost, CASE WHEN {carries} THEN {cost} END AS cost
        FROM messages m {join} conversations c ON c.id = m.conversation_id {join} users u ON u.id = c.user_id
        WHERE m.id > :after_id AND m.id <= :last_id AND m.user_id IS NULL {of_users} {limit}
    ) AS p
    WHERE messages.id = p.id AND (NOT p.carries OR (
        p.input_tokens BETWEEN 0 AND :max_tokens AND p.output_tokens BETWEEN 0 AND :max_tokens
        AND p.usage_date IS NOT NULL AND {is_plain}
    ))
"""
_CARRIES = "(m.role = 'assistant' AND m.input_tokens IS NOT NULL)"


def _adopting(old: OldRows) -> TextClause:
    model_cost = "m.model_cost" if "model_cost" in old.columns else "NULL"
    of_users = "" if old.users is None else "AND u.id IN :users"
    parameters: list[BindParameter[Any]] = [] if old.users is None else [bindparam("users", expanding=True)]
    if old.is_sqlite:
        parts = {
            "usage_date": day_on_sqlite("m.created_at", old.zone),
            "model_cost": model_cost,
            "cost": cost_on_sqlite(model_cost),
            "is_plain": "typeof(p.input_tokens) = 'integer' AND typeof(p.output_tokens) = 'integer'"
            " AND (p.model_cost IS NULL) = (p.cost IS NULL)",
            "join": "CROSS JOIN",  # fixes the join order: SQLite would start with the users if these are few
            "limit": "LIMIT -1",  # else SQLite calls the functions again wherever their columns are named
        }
    else:
        instants, days = ARRAY(DateTime(timezone=True)), ARRAY(Date)
        parameters += [bindparam("starts", type_=instants), bindparam("days", type_=days)]
        dollars = f"({model_cost})::float8::text::numeric"
        parts = {
            "usage_date": "(:days)[width_bucket(m.created_at::timestamptz, :starts)]",
            "model_cost": f"({model_cost})::float8",
            "cost": f"round({dollars}, 10)",
            # The shortest decimal of a float below 100,000 is within 1e-11 of the float. Off a tie, both round alike.
            "is_plain": "(p.model_cost IS NULL OR (p.model_cost >= 0 AND p.model_cost < 100000"
            " AND abs(mod(p.model_cost::text::numeric * 10000000000, 1) - 0.5) > 0.2))",
            "join": "JOIN",
            "limit": "",
        }
    return text(_ADOPTING.format(carries=_CARRIES, of_users=of_users, **parts)).bindparams(*parameters)


def day_on_sqlite(instant: str, zone: tzinfo) -> str:
    """Return SQLite's expression for `old_rows.day_of` of a column.

    The expression is null if the value has no usage date.
    """
    by_function = f"foundation_usage_date({instant})"
    if zone != ZoneInfo("UTC"):
        return by_function
    # In UTC, valid text begins with its day. For an invalid date, date() with a modifier returns a different day.
    day = f"substr({instant}, 1, 10)"
    return f"""
        CASE WHEN typeof({instant}) = 'text' AND date({instant}, '+0 days') = {day}
            AND {day} BETWEEN '0001-01-02' AND '9999-12-30'
            AND length(CAST({instant} AS BLOB)) IN (19, 26)
            AND ({instant} GLOB '{clock.SECONDS_GLOB}' OR {instant} GLOB '{clock.MICROSECONDS_GLOB}')
        THEN {day} ELSE {by_function} END
    """


def cost_on_sqlite(model_cost: str) -> str:
    """Return SQLite's expression for `old_rows.cost_of` of a column, in units.

    A unit is 1e-10 dollars. The expression is null if the value is not a cost.
    """
    units = f"{model_cost} * 1e10"
    # Below 10,000 dollars, the units differ from the exact value by at most 0.02. Off a tie, both round alike.
    return f"""
        CASE WHEN {model_cost} >= 0 AND {model_cost} < 10000
            AND abs({units} - CAST({units} AS INTEGER) - 0.5) > 0.2
        THEN CAST({units} + 0.5 AS INTEGER) ELSE foundation_cost({model_cost}) END
    """


def sqlite_functions(zone: tzinfo) -> dict[str, Callable[[Any], Any]]:
    """Return the functions of one argument that these expressions call.

    They return None for values that are no day or cost.
    """

    def usage_date(created_at: Any) -> str | None:
        day = old_rows.day_of(created_at, zone)
        return day.isoformat() if isinstance(day, date) else None

    return {"foundation_usage_date": usage_date, "foundation_cost": _cost}


@lru_cache(maxsize=65_536)
def _cost(model_cost: Any) -> int | None:
    cost = old_rows.cost_of(model_cost)
    return int(cost.scaleb(money.DECIMAL_PLACES)) if isinstance(cost, Decimal) else None


@lru_cache(maxsize=8)
def _days(zone: tzinfo, today: date) -> dict[str, Any]:
    """Return the days from `FIRST_DAY` to tomorrow, and where they begin.

    `starts` has one instant more: the end of tomorrow. A day is null if its instants are not those between two starts.
    """
    days = [FIRST_DAY + timedelta(days=number) for number in range((today - FIRST_DAY).days + 3)]
    starts = [clock.as_utc(datetime.combine(day, time(), zone)) for day in days]
    before = timedelta(microseconds=1)
    begins = [
        clock.usage_date(start - before, zone) < day == clock.usage_date(start, zone)
        for day, start in zip(days, starts, strict=True)
    ]
    known = [day if begins[i] and begins[i + 1] else None for i, day in enumerate(days[:-1])]
    return {"days": known, "starts": starts}


async def _store(session: AsyncSession, found: Sequence[Finding], is_owned: bool) -> None:
    if not found:
        return
    owner: BindParameter[Any] = bindparam("owner")
    statement = (
        update(Message)
        .where(Message.id == bindparam("message_id"))
        .values(usage_date=bindparam("day"), cost=bindparam("dollars", type_=Message.cost.type))
    )
    statement = statement.where(Message.user_id == owner) if is_owned else statement.values(user_id=owner)
    rows = [
        {
            "message_id": finding.message_id,
            "owner": finding.user_id,
            "day": finding.usage.usage_date if finding.usage else None,
            "dollars": finding.usage.cost if finding.usage else None,
        }
        for finding in found
    ]
    connection = await session.connection()
    await connection.execute(statement, rows)
