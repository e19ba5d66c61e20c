"""Adopt plain old rows in bulk, by one statement in the database.

`adoption` examines all other rows one by one. A row is plain if its figures are valid and its cost is not near a
rounding tie at 1e-10 dollars. Near a tie, decimal and binary rounding could differ. The day always equals
`clock.usage_date`: the PostgreSQL statement receives the instants at which days begin. SQLite calls that function,
unless the text holds the day.
"""

from collections.abc import Callable, Collection
from datetime import date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import ARRAY, Date, DateTime, TextClause, bindparam, text
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock, money
from app.db import database
from models.messages import MAX_TOKENS

FIRST_DAY = date(2015, 1, 1)
"""On PostgreSQL, `adoption` examines older rows one by one."""


class Part(NamedTuple):
    """Select the old rows with ids after `after_id`, up to `last_id`.

    `users` is None for all users.
    """

    after_id: int
    last_id: int
    users: Collection[int] | None
    has_model_cost: bool
    zone: tzinfo


async def adopt(session: AsyncSession, part: Part) -> None:
    """Adopt the plain rows of a part in the caller's transaction."""
    if database.is_sqlite(session):
        await _offer_functions(session, part.zone)
        rows = _sqlite(_model_cost(part), part.users, part.zone)
        await session.execute(_bound(_adopting(f"({rows})"), part), _values(part))
        return
    rows = _postgresql(f"({_model_cost(part)})::float8", part.users)
    instant = DateTime(timezone=True)
    statement = _bound(_adopting(f"({rows})"), part).bindparams(
        bindparam("begin", type_=instant),
        bindparam("end", type_=instant),
        bindparam("starts", type_=ARRAY(instant)),
        bindparam("days", type_=ARRAY(Date)),
    )
    await session.execute(statement, _values(part) | _days(part.zone, clock.now().date()))


def _adopting(rows: str) -> str:
    return f"""
        UPDATE messages SET user_id = p.owner, usage_date = p.usage_date, cost = p.cost FROM {rows} AS p
        WHERE messages.id = p.id
    """  # noqa: S608 - built only from this module's constants


def _model_cost(part: Part) -> str:
    return "m.model_cost" if part.has_model_cost else "NULL"


def _bound(statement: str, part: Part) -> TextClause:
    return text(statement) if part.users is None else text(statement).bindparams(bindparam("users", expanding=True))


def _values(part: Part) -> dict[str, Any]:
    values: dict[str, Any] = {"after_id": part.after_id, "last_id": part.last_id, "max_tokens": MAX_TOKENS}
    return values if part.users is None else values | {"users": list(part.users)}


def _sqlite(model_cost: str, users: Collection[int] | None, zone: tzinfo) -> str:
    return _plain_rows(
        usage_date=day_on_sqlite("m.created_at", zone),
        model_cost=model_cost,
        cost=cost_on_sqlite(model_cost),
        is_plain=(
            "typeof(o.input_tokens) = 'integer' AND typeof(o.output_tokens) = 'integer'"
            " AND (o.model_cost IS NULL) = (o.cost IS NULL)"
        ),
        users=users,
        join="CROSS JOIN",  # fixes the join order: SQLite would start with the users if these are few
        tail="LIMIT -1",  # else SQLite calls the functions again wherever their columns are named
    )


def day_on_sqlite(instant: str, zone: tzinfo) -> str:
    """Return SQLite's expression for `clock.usage_date` of a column.

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
    """Return SQLite's expression for `money.from_float` of a column, in units.

    A unit is 1e-10 dollars. The expression is null if the value is not a cost.
    """
    units = f"{model_cost} * 1e10"
    # Below 10,000 dollars, the units differ from the exact value by at most 0.02. Off a tie, both round alike.
    return f"""
        CASE WHEN {model_cost} >= 0 AND {model_cost} < 10000
            AND abs({units} - CAST({units} AS INTEGER) - 0.5) > 0.2
        THEN CAST({units} + 0.5 AS INTEGER) ELSE foundation_cost({model_cost}) END
    """


def _postgresql(model_cost: str, users: Collection[int] | None) -> str:
    return _plain_rows(
        usage_date=(
            "CASE WHEN m.created_at::timestamptz >= :begin AND m.created_at::timestamptz < :end"
            " THEN (:days)[width_bucket(m.created_at::timestamptz, :starts)] END"
        ),
        model_cost=model_cost,
        cost=f"round({model_cost}::text::numeric, 10)",
        # The shortest decimal of a float below 100,000 is within 1e-11 of the float. Off a tie, both round alike.
        is_plain=(
            "(o.model_cost IS NULL OR (o.model_cost >= 0 AND o.model_cost < 100000"
            " AND abs(mod(o.model_cost::text::numeric * 10000000000, 1) - 0.5) > 0.2))"
        ),
        users=users,
    )


def _plain_rows(
    *,
    usage_date: str,
    model_cost: str,
    cost: str,
    is_plain: str,
    users: Collection[int] | None,
    join: str = "JOIN",
    tail: str = "",
) -> str:
    only = "" if users is None else "AND u.id IN :users"
    carries = "(m.role = 'assistant' AND m.input_tokens IS NOT NULL)"
    return f"""
        SELECT o.id, o.owner, o.usage_date, o.cost FROM (
            SELECT m.id, u.id AS owner, {carries} AS carries,
                m.input_tokens, coalesce(m.output_tokens, 0) AS output_tokens,
                CASE WHEN {carries} THEN {usage_date} END AS usage_date,
                {model_cost} AS model_cost, CASE WHEN {carries} THEN {cost} END AS cost
            FROM messages m {join} conversations c ON c.id = m.conversation_id {join} users u ON u.id = c.user_id
            WHERE m.id > :after_id AND m.id <= :last_id AND m.user_id IS NULL {only}
            {tail}
        ) o
        WHERE NOT o.carries OR (
            o.input_tokens BETWEEN 0 AND :max_tokens AND o.output_tokens BETWEEN 0 AND :max_tokens
            AND o.usage_date IS NOT NULL AND {is_plain}
        )
    """  # noqa: S608 - built only from this module's constants


def sqlite_functions(zone: tzinfo) -> dict[str, Callable[[Any], Any]]:
    """Return the functions of one argument that these expressions call."""

    def usage_date(created_at: Any) -> str | None:
        try:
            return clock.usage_date(clock.parse_instant(created_at), zone).isoformat()
        except (ValueError, TypeError, AttributeError, OverflowError):
            return None

    return {"foundation_usage_date": usage_date, "foundation_cost": _cost}


async def _offer_functions(session: AsyncSession, zone: tzinfo) -> None:
    connection = await (await session.connection()).get_raw_connection()
    driver: Any = connection.driver_connection
    for name, function in sqlite_functions(zone).items():
        await driver.create_function(name, 1, function, deterministic=True)


@lru_cache(maxsize=65_536)
def _cost(model_cost: Any) -> int | None:
    if not isinstance(model_cost, int | float) or not 0 <= model_cost <= money.MAX_MESSAGE_COST:
        return None
    return int(money.from_float(float(model_cost)).scaleb(money.DECIMAL_PLACES))


@lru_cache(maxsize=8)
def _days(zone: tzinfo, today: date) -> dict[str, Any]:
    """Return the days from `FIRST_DAY` to tomorrow and their first instants.

    The arrays `days` and `starts` have the same length.
    """
    starts: list[datetime] = []
    days: list[date] = []
    day = FIRST_DAY
    while day <= today + timedelta(days=1):
        start = _start(day, zone)
        if clock.usage_date(start, zone) == day:  # some zones once skipped a day
            starts.append(start)
            days.append(day)
        day += timedelta(days=1)
    return {"begin": starts[0], "end": _start(day, zone), "starts": starts, "days": days}


def _start(day: date, zone: tzinfo) -> datetime:
    """Return the first instant whose usage date is this day, or later."""
    low = clock.as_utc(datetime.combine(day, time(), zone)) - timedelta(hours=26)
    high = low + timedelta(hours=52)
    while high - low > timedelta(microseconds=1):
        middle = low + (high - low) / 2
        if clock.usage_date(middle, zone) < day:
            low = middle
        else:
            high = middle
    return high
