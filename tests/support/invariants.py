"""What is always true of the data (contract, section 4), checked with SQL and arithmetic of the tests' own."""

import operator
from collections import Counter
from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from sqlalchemy import Row, text

from app.db.database import Database
from app.db.engines import READ_ONLY

_MESSAGES = """
    SELECT id, user_id, conversation_id, role, created_at, input_tokens, output_tokens, cached_input_tokens, cost,
           usage_date, idempotency_key, coalesce(model, '') AS model, usage_estimated
    FROM messages
"""
_ADJUSTMENTS = """
    SELECT user_id, usage_date, model, input_tokens, output_tokens, total_cost, message_count, unpriced_count,
           estimated_count
    FROM usage_adjustments
"""
_DATED = """
    SELECT user_id, usage_date, sum(input_tokens) AS input_tokens, sum(coalesce(output_tokens, 0)) AS output_tokens,
           sum(cost) AS total_cost, count(*) AS message_count, count(*) - count(cost) AS unpriced_count,
           sum(CASE WHEN usage_estimated THEN 1 ELSE 0 END) AS estimated_count
    FROM messages WHERE usage_date IS NOT NULL GROUP BY user_id, usage_date
"""
_ROLLUP = """
    SELECT user_id, year, month, input_tokens, output_tokens, total_tokens, total_cost, message_count, unpriced_count,
           estimated_count
    FROM user_monthly_token_usage
"""
_DAYS = """
    SELECT user_id, usage_date, model, input_tokens, output_tokens, input_tokens + output_tokens AS total_tokens,
           total_cost, message_count, unpriced_count, estimated_count
    FROM user_daily_token_usage
"""
_UNITS = 10**10

_Row = Row[*tuple[Any, ...]]


class Totals(NamedTuple):
    """The figures of one user's month that everybody sees; the cost is an exact number of dollars."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    total_cost: Fraction = Fraction(0)
    message_count: int = 0


class _Figures(NamedTuple):
    """All figures of a row of a rollup."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    total_cost: Fraction = Fraction(0)
    message_count: int = 0
    unpriced_count: int = 0
    estimated_count: int = 0

    def plus(self, row: _Row) -> "_Figures":
        """With one more message."""
        output = row.output_tokens or 0
        cost = Fraction(0) if row.cost is None else _dollars(row.cost)
        return _Figures(
            self.input_tokens + row.input_tokens,
            self.output_tokens + output,
            self.total_tokens + row.input_tokens + output,
            self.total_cost + cost,
            self.message_count + 1,
            self.unpriced_count + (row.cost is None),
            self.estimated_count + bool(row.usage_estimated),
        )

    def plus_adjustment(self, row: _Row) -> "_Figures":
        """With one more row of `usage_adjustments`."""
        return _Figures(
            self.input_tokens + row.input_tokens,
            self.output_tokens + row.output_tokens,
            self.total_tokens + row.input_tokens + row.output_tokens,
            self.total_cost + _dollars(row.total_cost),
            self.message_count + row.message_count,
            self.unpriced_count + row.unpriced_count,
            self.estimated_count + row.estimated_count,
        )


UserMonth = tuple[int, str]


async def check(
    database: Database, zone: tzinfo = UTC, skipped: Collection[int] = frozenset()
) -> Mapping[UserMonth, Totals]:
    """Demands that the rollup is the sum of the messages, to the last digit, in both directions.

    Reads one snapshot, so it may be called in the middle of traffic.

    Args:
        database: at the newest schema.
        zone: `USAGE_TIMEZONE`.
        skipped: ids of old messages that carry usage which cannot be counted.

    Returns:
        The months by user id and `YYYY-MM`; those without any usage are not among them.
    """
    messages, adjustments, rollup, days = await _read(database, _MESSAGES, _ADJUSTMENTS, _ROLLUP, _DAYS)
    keys = Counter((row.user_id, row.idempotency_key) for row in messages if row.idempotency_key is not None)
    assert not [key for key, count in keys.items() if count > 1], "an idempotency key is stored twice"
    expected: dict[UserMonth, _Figures] = {}
    for row in messages:
        if row.id not in skipped and _is_counted(row, zone):
            key = row.user_id, _day(row).isoformat()[:7]
            expected[key] = expected.get(key, _Figures()).plus(row)
    for row in adjustments:
        key = row.user_id, _day(row).isoformat()[:7]
        expected[key] = expected.get(key, _Figures()).plus_adjustment(row)
    found: dict[UserMonth, _Figures] = {}
    for row in rollup:
        key = row.user_id, f"{row.year:04d}-{row.month:02d}"
        assert key not in found, f"two rows for {key}"
        found[key] = _totals(row)
    found = {key: totals for key, totals in found.items() if totals != _Figures()}
    assert found == expected, "\n".join(
        f"user {key[0]}, {key[1]}: the rollup has {found.get(key)}, the messages {expected.get(key)}"
        for key in sorted(found.keys() | expected.keys())
        if found.get(key) != expected.get(key)
    )
    _check_days([row for row in messages if row.id not in skipped and row.usage_date], adjustments, days)
    return {key: Totals(*figures[:5]) for key, figures in expected.items()}


def _check_days(counted: list[_Row], adjustments: list[_Row], days: list[_Row]) -> None:
    """Demands that also the days of each model are the sums of the messages and the adjustments."""
    expected: dict[Any, _Figures] = {}
    for row in counted:
        key = (row.user_id, _day(row), row.model)
        expected[key] = expected.get(key, _Figures()).plus(row)
    for row in adjustments:
        key = (row.user_id, _day(row), row.model)
        expected[key] = expected.get(key, _Figures()).plus_adjustment(row)
    assert {(row.user_id, _day(row), row.model): _totals(row) for row in days} == expected


async def right(database: Database) -> set[UserMonth]:
    """The months of the rollup that are the sum of those messages that are dated; demands nothing."""
    dated, rollup = await _read(database, _DATED, _ROLLUP)
    expected: dict[UserMonth, _Figures] = {}
    for row in dated:
        key = row.user_id, _day(row).isoformat()[:7]
        here, cost = expected.get(key, _Figures()), _dollars(row.total_cost or 0)
        tokens = int(row.input_tokens), int(row.output_tokens)
        figures = (*tokens, sum(tokens), cost, row.message_count, row.unpriced_count, row.estimated_count)
        expected[key] = _Figures(*map(operator.add, here, figures))
    found = {(row.user_id, f"{row.year:04d}-{row.month:02d}"): _totals(row) for row in rollup}
    return {key for key, totals in expected.items() if found.get(key) == totals}


async def _read(database: Database, *queries: str) -> list[list[_Row]]:
    async with database.engine.connect() as connection:
        if database.engine.dialect.name == "postgresql":
            connection = await connection.execution_options(isolation_level="REPEATABLE READ")
        connection = await connection.execution_options(**{READ_ONLY: True})
        return [list(await connection.execute(text(query))) for query in queries]


def _is_counted(row: _Row, zone: tzinfo) -> bool:
    carries_usage = row.role == "assistant" and row.input_tokens is not None
    assert carries_usage == (row.usage_date is not None), f"counted, and without usage, or the reverse: {row}"
    if not carries_usage:
        return False
    assert row.user_id is not None, f"counted for nobody: {row}"
    assert _day(row) == _instant(row.created_at).astimezone(zone).date(), f"counted on another day: {row}"
    tokens = (row.input_tokens, row.output_tokens or 0, row.cached_input_tokens or 0)
    assert all(type(count) is int and count >= 0 for count in tokens), f"not counts: {row}"
    assert tokens[2] <= tokens[0], f"more cached input than input: {row}"
    assert row.cost is None or _dollars(row.cost) >= 0, f"a negative cost: {row}"
    return True


def _totals(row: _Row) -> _Figures:
    counts = (row.message_count, row.unpriced_count, row.estimated_count)
    totals = _Figures(row.input_tokens, row.output_tokens, row.total_tokens, _dollars(row.total_cost), *counts)
    assert all(type(figure) is not float and figure >= 0 for figure in totals), f"negative, or a float: {row}"
    assert totals.total_tokens == totals.input_tokens + totals.output_tokens, f"the total is not the sum: {row}"
    return totals


def _dollars(stored: int | Decimal) -> Fraction:
    # SQLite keeps whole numbers of 1e-10 dollars, PostgreSQL decimals; a float in either would be inexact.
    assert isinstance(stored, int | Decimal), f"money as {type(stored).__name__}: {stored!r}"
    dollars = Fraction(stored, _UNITS) if isinstance(stored, int) else Fraction(stored)
    assert (dollars * _UNITS).denominator == 1, f"finer than 1e-10 dollars: {stored}"
    return dollars


def _day(row: _Row) -> date:
    return date.fromisoformat(row.usage_date) if isinstance(row.usage_date, str) else row.usage_date


def _instant(stored: str | datetime) -> datetime:
    instant = datetime.fromisoformat(stored) if isinstance(stored, str) else stored
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
