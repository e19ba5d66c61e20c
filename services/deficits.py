"""Deficits: by how much each rollup falls short of the ledger, found by one statement and added by a few.

A live transaction adds the same to the ledger and to every rollup, so a deficit is the same in every snapshot. One
statement, from one snapshot, sums the messages of a range by day and conversation and sets them against their rollup.
What a day should be is then the sum of its conversations as they are, and of what these lack; a month is the sum of its
days. Its months are all pairs; of the other two it gives only what is not even.
"""

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from typing import Any, Literal, NamedTuple

from sqlalchemy import BigInteger, Column, Date, MetaData, String, Table, column, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.schema import CreateTable

from app.clock import MICROSECONDS_GLOB, SECONDS_GLOB, Month, UtcDateTime
from app.database import is_sqlite
from app.money import UsdAmount
from services.rollups import SUMMED

Level = Literal["conversation", "day", "month"]
FIRST_DAY, LAST_DAY = date.min, date.max
_LOWEST_MONTH, _HIGHEST_MONTH = -(2**62), 2**62


class KeyRange(NamedTuple):
    """A range of users and of months, all ends included; None stands for no end. Months are whole."""

    first_user: int
    last_user: int
    since: Month | None = None
    until: Month | None = None

    def parameters(self) -> dict[str, Any]:
        """As the statements of this module take it."""
        return {
            "first_user": self.first_user,
            "last_user": self.last_user,
            "since": self.since.first_day if self.since else FIRST_DAY,
            "until": self.until.last_day if self.until else LAST_DAY,
            "since_month": _number(self.since) if self.since else _LOWEST_MONTH,
            "until_month": _number(self.until) if self.until else _HIGHEST_MONTH,
        }


def _number(month: Month) -> int:
    return month.year * 100 + month.month


class Deficit(NamedTuple):
    """What a row of a rollup should be and what it is; it is not there at all unless `is_found`."""

    level: Level
    user_id: int
    usage_date: date | None
    month: int | None
    conversation_id: str
    is_found: int
    should_input_tokens: int
    found_input_tokens: int
    should_output_tokens: int
    found_output_tokens: int
    should_total_cost: Decimal
    found_total_cost: Decimal
    should_message_count: int
    found_message_count: int
    should_conversation_count: int
    found_conversation_count: int
    should_last_message_at: datetime | None
    found_last_message_at: datetime | None

    def month_of(self) -> Month:
        """The month of its key."""
        return Month.of(self.usage_date) if self.usage_date else Month(*divmod(self.month or 0, 100))


_SPECIAL: dict[str, Any] = {
    "level": String,
    "usage_date": Date,
    "conversation_id": String,
    "should_total_cost": UsdAmount,
    "found_total_cost": UsdAmount,
    "should_last_message_at": UtcDateTime,
    "found_last_message_at": UtcDateTime,
}
_TYPES = {name: _SPECIAL.get(name, BigInteger) for name in Deficit._fields}
_deficits = Table(
    "foundation_deficits",
    MetaData(),
    *(Column(name, type_) for name, type_ in _TYPES.items()),
    prefixes=["TEMPORARY"],
)
_COLUMNS = ", ".join(_TYPES)


async def read(session: AsyncSession, key_range: KeyRange) -> Sequence[Deficit]:
    """Every month of the range, and what is not even among its days and conversations; writes nothing."""
    await _give_memory(session)
    statement = text(_statement(is_sqlite(session))).columns(*(column(name, type_) for name, type_ in _TYPES.items()))
    return [Deficit(*row) for row in await session.execute(statement, key_range.parameters())]


async def collect(session: AsyncSession, key_range: KeyRange) -> tuple[Sequence[Deficit], int]:
    """Reads as `read` does, and keeps the deficits for `apply` on the same connection, in a later transaction or this.

    Returns:
        The months, and how many deficits there are below them.
    """
    await _give_memory(session)
    await session.execute(CreateTable(_deficits, if_not_exists=True))
    clear = "DELETE FROM foundation_deficits" if is_sqlite(session) else "TRUNCATE foundation_deficits"
    await session.execute(text(clear))
    into = f"INSERT INTO foundation_deficits ({_COLUMNS}) {_statement(is_sqlite(session))}"
    await session.execute(text(into), key_range.parameters())
    months = select(_deficits).where(_deficits.c.level == "month")
    below = select(func.count()).select_from(_deficits).where(_deficits.c.level != "month")
    return [Deficit(*row) for row in await session.execute(months)], await session.scalar(below) or 0


async def _give_memory(session: AsyncSession) -> None:
    """For the sorts and hashes of a range on PostgreSQL, which else use the disk; until the transaction ends."""
    if not is_sqlite(session):
        await session.execute(_MEMORY)


_MEMORY = text("""
    SELECT set_config('work_mem', '64MB', true)
    WHERE pg_size_bytes(current_setting('work_mem')) < pg_size_bytes('64MB')
""")


async def apply(session: AsyncSession) -> None:
    """Adds what `collect` found to the days of conversations, then to the days."""
    await _give_memory(session)
    for statement in _additions(is_sqlite(session)):
        await session.execute(text(statement))


@cache
def _statement(sqlite: bool) -> str:
    if sqlite:
        year, month = (f"CAST(substr(usage_date, {part}) AS INTEGER)" for part in ("1, 4", "6, 2"))
    else:
        year, month = (f"CAST(extract({part} FROM usage_date) AS INTEGER)" for part in ("year", "month"))
    sums = ", ".join(f"CAST(sum({name}) AS {_KINDS[name]}) AS {name}" for name in SUMMED)
    lacking = ", ".join(f"should_{name} - found_{name}" for name in SUMMED)
    in_range = "user_id BETWEEN :first_user AND :last_user"
    in_days = f"{in_range} AND usage_date BETWEEN :since AND :until"
    in_months = f"{in_range} AND CAST(year AS BIGINT) * 100 + month BETWEEN :since_month AND :until_month"
    last_message_at = _LAST_MESSAGE_AT_ON_SQLITE if sqlite else "max(created_at)"
    # Where foreign keys were not enforced. Of the groups: as a condition on the rows it would replace the range's.
    present = "HAVING user_id IN (SELECT id FROM users)" if sqlite else ""
    return f"""
        WITH ledger AS {"MATERIALIZED" if sqlite else "NOT MATERIALIZED"} (
            SELECT user_id, usage_date, coalesce(conversation_id, '') AS conversation_id,
                CAST(sum(input_tokens) AS BIGINT) AS input_tokens,
                CAST(sum(coalesce(output_tokens, 0)) AS BIGINT) AS output_tokens,
                coalesce(sum(cost), 0) AS total_cost, count(*) AS message_count, {last_message_at} AS last_message_at
            FROM messages WHERE {in_days}
            GROUP BY user_id, usage_date, coalesce(conversation_id, '') {present}
        ), uneven_conversations ({_COLUMNS}) AS MATERIALIZED (
            {_compared("conversation", "ledger", in_days, sqlite)}
        ), days AS MATERIALIZED (
            SELECT user_id, usage_date, {sums}, CAST(sum(conversations) AS BIGINT) AS conversation_count FROM (
                SELECT user_id, usage_date, {", ".join(SUMMED)},
                    CASE WHEN conversation_id = '' THEN 0 ELSE 1 END AS conversations
                FROM conversation_daily_token_usage WHERE {in_days}
                UNION ALL SELECT user_id, usage_date, {lacking},
                    CASE WHEN conversation_id = '' THEN 0 WHEN should_message_count > 0 THEN 1 - is_found ELSE -1 END
                FROM uneven_conversations
            ) AS parts GROUP BY user_id, usage_date HAVING sum(message_count) > 0
        ), months AS MATERIALIZED (
            SELECT user_id, {year} AS year, {month} AS month, {sums} FROM days GROUP BY user_id, {year}, {month}
        )
        SELECT * FROM uneven_conversations
        UNION ALL SELECT * FROM ({_compared("day", "days", in_days, sqlite)}) AS uneven_days
        UNION ALL SELECT * FROM ({_compared("month", "months", in_months, sqlite)}) AS all_months
    """


# Old rows may hold other forms of ISO 8601, whose texts do not sort as the instants do. These two do, together too.
_MAX_ON_SQLITE = f"""
    max(CASE WHEN created_at GLOB '{SECONDS_GLOB}' OR created_at GLOB '{MICROSECONDS_GLOB}' THEN created_at
        ELSE foundation_instant(created_at) END)
"""
_LAST_MESSAGE_AT_ON_SQLITE = (
    f"CASE WHEN {_MAX_ON_SQLITE} GLOB '{SECONDS_GLOB}' THEN {_MAX_ON_SQLITE} || '.000000' ELSE {_MAX_ON_SQLITE} END"
)


class _Rollup(NamedTuple):
    """A table of sums: its key, and what it holds beside the sums."""

    table: str
    keys: tuple[str, ...]
    more: tuple[str, ...]


_ROLLUPS: dict[Level, _Rollup] = {
    "conversation": _Rollup(
        "conversation_daily_token_usage", ("user_id", "usage_date", "conversation_id"), ("last_message_at",)
    ),
    "day": _Rollup("user_daily_token_usage", ("user_id", "usage_date"), ("conversation_count",)),
    "month": _Rollup("user_monthly_token_usage", ("user_id", "year", "month"), ()),
}
_NEVER = "CAST(NULL AS TIMESTAMPTZ)"
_KINDS = {name: "NUMERIC" if name == "total_cost" else "BIGINT" for name in SUMMED}


def _compared(level: Level, should: str, in_range: str, sqlite: bool) -> str:
    """What the ledger says beside what a rollup says; of months all, of the others only what differs."""
    found, keys, more = _ROLLUPS[level]
    key = {name: f"coalesce(s.{name}, f.{name})" for name in keys}
    month = f"CAST({key['year']} AS BIGINT) * 100 + {key['month']}" if level == "month" else "CAST(NULL AS BIGINT)"
    columns = [
        f"'{level}'",
        key["user_id"],
        key.get("usage_date", "CAST(NULL AS DATE)"),
        month,
        key.get("conversation_id", "''"),
        "CASE WHEN f.user_id IS NULL THEN 0 ELSE 1 END",
        *(f"coalesce({side}.{name}, 0)" for name in SUMMED for side in ("s", "f")),
        *(f"coalesce({side}.conversation_count, 0)" if "conversation_count" in more else "0" for side in ("s", "f")),
        *(f"{side}.last_message_at" if "last_message_at" in more else _NEVER for side in ("s", "f")),
    ]
    is_not = "IS NOT" if sqlite else "IS DISTINCT FROM"
    differs = " OR ".join(f"s.{name} {is_not} f.{name}" for name in (*SUMMED, *more))
    same = " AND ".join(f"s.{name} = f.{name}" for name in keys)
    here = f"(SELECT * FROM {found} WHERE {in_range})"
    only = "" if level == "month" else f"WHERE {differs}"
    select_ = f"SELECT {', '.join(columns)} FROM"
    if not sqlite:
        return f"{select_} {should} AS s FULL JOIN {here} AS f ON {same} {only}"
    # SQLite looks through all of the right side for each row of the left one in a FULL JOIN. Rows of the rollup without
    # messages are looked for only where there are more rows than have been joined.
    return f"""
        WITH of_messages ({_COLUMNS}) AS MATERIALIZED (
            {select_} {should} AS s LEFT JOIN {found} AS f ON {same} {only}
        )
        SELECT * FROM of_messages
        UNION ALL {select_} {here} AS f LEFT JOIN {should} AS s ON {same}
        WHERE s.user_id IS NULL AND (SELECT count(*) FROM {here})
            > (SELECT count(*) FROM {should}) - (SELECT count(*) FROM of_messages WHERE is_found = 0)
    """


@cache
def _additions(sqlite: bool) -> tuple[str, ...]:
    touched = "SELECT DISTINCT user_id, usage_date FROM foundation_deficits WHERE level <> 'month'"
    # Whoever opens a conversation's day counts it in the day's row. So that row is locked first: what was committed
    # before is counted here, and what comes after adds to this count.
    lock = f"""
        SELECT count(*) FROM (
            SELECT 1 FROM user_daily_token_usage WHERE (user_id, usage_date) IN ({touched})
            ORDER BY user_id, usage_date FOR UPDATE
        ) AS locked
    """
    recount = f"""
        UPDATE user_daily_token_usage AS t SET conversation_count = counted.conversations FROM (
            SELECT d.user_id, d.usage_date, count(nullif(c.conversation_id, '')) AS conversations
            FROM ({touched}) AS d
            LEFT JOIN conversation_daily_token_usage AS c ON c.user_id = d.user_id AND c.usage_date = d.usage_date
            GROUP BY d.user_id, d.usage_date
        ) AS counted
        WHERE t.user_id = counted.user_id AND t.usage_date = counted.usage_date
            AND t.conversation_count <> counted.conversations
    """
    added = (*_adding("conversation", _LATEST), *_adding("day", _FIRST_GUESS))
    return (*added, recount) if sqlite else (*added, lock, recount)  # on SQLite nobody else writes meanwhile


class _Column(NamedTuple):
    """How a column that is no sum is given, kept, and set right."""

    inserted: str
    kept: str
    corrected: str


_LATEST = {
    "last_message_at": _Column(
        inserted="should_last_message_at",
        kept="CASE WHEN excluded.last_message_at > t.last_message_at THEN excluded.last_message_at"
        " ELSE t.last_message_at END",
        corrected="CASE WHEN t.last_message_at = d.found_last_message_at OR t.last_message_at IS NULL"
        " THEN d.should_last_message_at ELSE t.last_message_at END",
    )
}
_FIRST_GUESS = {
    "conversation_count": _Column("should_conversation_count", "t.conversation_count", "t.conversation_count")
}
"""Counted anew when the conversations are there."""


def _adding(level: Level, more: dict[str, _Column]) -> tuple[str, ...]:
    table, keys, _ = _ROLLUPS[level]
    names = [*SUMMED, *more]
    given = [*(f"should_{name}" for name in SUMMED), *(column.inserted for column in more.values())]
    kept = [
        *(f"{name} = t.{name} + excluded.{name}" for name in SUMMED),
        *(f"{name} = {column.kept}" for name, column in more.items()),
    ]
    cost = "t.total_cost - d.found_total_cost + d.should_total_cost"
    corrected = [
        *(f"{name} = t.{name} - d.found_{name} + d.should_{name}" for name in SUMMED if name != "total_cost"),
        f"total_cost = CASE WHEN t.total_cost = 'NaN' THEN d.should_total_cost ELSE {cost} END",  # PostgreSQL's
        *(f"{name} = {column.corrected}" for name, column in more.items()),
    ]
    key = ", ".join(keys)
    same = " AND ".join(f"t.{name} = d.{name}" for name in keys)
    mine = f"foundation_deficits WHERE level = '{level}' AND is_found ="
    nothing = " AND ".join(f"{name} = 0" for name in SUMMED)
    return (
        f"""
        INSERT INTO {table} AS t ({key}, {", ".join(names)}) SELECT {key}, {", ".join(given)} FROM {mine} 0
        ORDER BY {key} ON CONFLICT ({key}) DO UPDATE SET {", ".join(kept)}
        """,
        f"UPDATE {table} AS t SET {', '.join(corrected)} FROM foundation_deficits AS d"
        f" WHERE d.level = '{level}' AND d.is_found = 1 AND {same}",
        f"DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {mine} 1) AND {nothing}",
    )
