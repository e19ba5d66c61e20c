"""Find how far each rollup differs from the ledger, with one statement.

The statement reads one snapshot. A live transaction adds the same figures to the ledger and to both rollups, so a
deficit is the same in every snapshot. The ledger is `messages` together with `usage_adjustments`.
"""

from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, BindParameter, Date, TextualSelect, bindparam, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession

from app.clock import Month
from app.db import ownership
from app.db.database import is_sqlite
from app.money import UsdAmount
from models import Message
from services.usage import rollups
from services.usage.rollups import SUMMED, Slot, Sums, UserMonth

FIRST_MONTH, LAST_MONTH = Month.of(date.min), Month.of(date.max)
_BEFORE_ALL, _AFTER_ALL = -(2**62), 2**62


class KeyRange(NamedTuple):
    """Span users and whole months, both ends included."""

    first_user: int
    last_user: int
    since: Month = FIRST_MONTH
    until: Month = LAST_MONTH

    def parameters(self) -> dict[str, Any]:
        """Return the values of the statement's parameters.

        The first and the last month of the calendar include the impossible months beyond them.
        """
        return {
            "first_user": self.first_user,
            "last_user": self.last_user,
            "since": self.since.first_day,
            "until": self.until.last_day,
            "since_month": _BEFORE_ALL if self.since == FIRST_MONTH else _number(self.since),
            "until_month": _AFTER_ALL if self.until == LAST_MONTH else _number(self.until),
        }


def _number(month: Month) -> int:
    return month.year * 100 + month.month


@dataclass
class Pair:
    """Hold a sum of the ledger and its rollup row.

    `found` is None if the row is missing.
    """

    expected: Sums = field(default_factory=Sums)
    found: Sums | None = None

    @property
    def in_sync(self) -> bool:
        """Return whether the row is correct.

        An empty row without usage in the ledger is incorrect.
        """
        return self.expected == Sums() if self.found is None else self.expected == self.found != Sums()


@dataclass
class MonthPair(Pair):
    """Hold both sides of a month, and the sum of its days."""

    in_days: Sums = field(default_factory=Sums)
    found_total_tokens: int | None = None
    """The total of an old row whose parts add up to a different total."""

    @property
    def in_sync(self) -> bool:
        """Return whether the month is correct, regardless of its days."""
        return super().in_sync and self.found_total_tokens is None

    def figure_found(self, name: str) -> int | Decimal | None:
        """Return a stored figure; None if the row is missing."""
        if name == "total_tokens" and self.found_total_tokens is not None:
            return self.found_total_tokens
        figure: int | Decimal | None = getattr(self.found, name, None)
        return figure


class Deficits(NamedTuple):
    """Hold every month of a range, and the days that differ."""

    months: dict[UserMonth, MonthPair]
    days: dict[Slot, Pair]

    @property
    def are_none(self) -> bool:
        """Return whether both rollups are correct."""
        return not self.days and all(pair.in_sync for pair in self.months.values())


async def read(session: AsyncSession, key_range: KeyRange) -> Deficits:
    """Compare the rollups of a range with the ledger. Write nothing.

    Raises:
        ValueError: a stored figure is not a number.
        sqlalchemy.exc.DBAPIError: a sum exceeds 64 bits, or a stored value cannot be read.
    """
    sqlite = is_sqlite(session)
    if not sqlite:
        await session.execute(_MEMORY)
    months: dict[UserMonth, MonthPair] = {}
    days: dict[Slot, Pair] = {}
    one_user = ownership.is_complete(session) and key_range.first_user == key_range.last_user
    for row in await session.execute(_statement(sqlite, one_user), key_range.parameters()):
        sides, user_id, usage_date, model, year, month, *figures = row
        sums = Sums(*figures)
        if not sums.total_cost.is_finite():
            raise ValueError("a stored cost is not a number")
        pair: Pair
        if usage_date is None:
            pair, names = months.setdefault((user_id, Month(year, month)), MonthPair()), _SIDES_OF_MONTH
        elif sides == 1 and sums == Sums():  # it needs no row
            continue
        else:
            pair, names = days.setdefault(Slot(user_id, usage_date, model), Pair()), _SIDES_OF_DAY
        for number, name in names.items():
            if number & sides:
                setattr(pair, name, sums)
    return Deficits(months, days)


_MEMORY = text("""
    SELECT set_config('work_mem', '64MB', true)
    WHERE pg_size_bytes(current_setting('work_mem')) < pg_size_bytes('64MB')
""")
"""Keep the sorts and hashes of a range in memory instead of on disk, until the transaction ends."""


_SIDES_OF_DAY = {1: "expected", 2: "found"}
_SIDES_OF_MONTH = {1: "expected", 2: "in_days", 4: "found"}
# Sides with equal figures are one row, with the sum of their numbers: so a correct month is one row, and a day without
# any message is incorrect. A month of the rollup is summed because it may hold text on SQLite.
_STATEMENT = """\
WITH days AS (
    SELECT 1 AS sides, user_id, usage_date, model, {sums}
    FROM (
        SELECT user_id, usage_date, coalesce(model, '') AS model, {counted}
        FROM messages
        WHERE {of_users} AND usage_date BETWEEN :since AND :until
        GROUP BY user_id, usage_date, coalesce(model, '') {of_existing_users}
        UNION ALL
        SELECT user_id, usage_date, model, {figures}
        FROM usage_adjustments
        WHERE {of_users} AND usage_date BETWEEN :since AND :until
    ) AS ledger
    GROUP BY user_id, usage_date, model
    UNION ALL
    SELECT 2, user_id, usage_date, model, {figures}
    FROM user_daily_token_usage
    WHERE {of_users} AND usage_date BETWEEN :since AND :until
), months AS (
    SELECT sides, user_id, {year} AS year, {month} AS month, {sums}
    FROM days
    GROUP BY sides, user_id, {year}, {month}
    UNION ALL
    SELECT 4, user_id, year, month, {sums}
    FROM user_monthly_token_usage
    WHERE {of_users} AND CAST(year AS BIGINT) * 100 + month BETWEEN :since_month AND :until_month
    GROUP BY user_id, year, month
)
SELECT sum(sides) AS sides, user_id, CAST(NULL AS DATE) AS usage_date, '' AS model, year, month, {figures}
FROM months
GROUP BY user_id, year, month, {figures}
UNION ALL
SELECT sum(sides), user_id, usage_date, model, NULL, NULL, {figures}
FROM days
GROUP BY user_id, usage_date, model, {figures}
HAVING count(*) = 1 OR message_count = 0
"""


@cache
def _statement(sqlite: bool, one_user: bool = False) -> TextualSelect:
    """Select both sides of every month, and of the days that differ.

    The statement for one user names the user, so that it reads one partition, or one node of Citus: only there it has
    one snapshot.
    """
    part_of_date = (
        "CAST(strftime('{0}', usage_date) AS INTEGER)" if sqlite else "CAST(extract({1} FROM usage_date) AS INTEGER)"
    )
    sql = _STATEMENT.format(
        figures=", ".join(SUMMED),
        sums=", ".join(f"{_sum(name, name)} AS {name}" for name in SUMMED),
        counted=", ".join(f"{_sum(name, figure)} AS {name}" for name, figure in _COUNTED.items()),
        year=part_of_date.format("%Y", "year"),
        month=part_of_date.format("%m", "month"),
        of_users="user_id = :first_user" if one_user else "user_id BETWEEN :first_user AND :last_user",
        # Users are missing where foreign keys were not enforced. In WHERE, it would replace the range in the plan.
        of_existing_users="HAVING user_id IN (SELECT id FROM users)" if sqlite else "",
    )
    numbers = ("first_user", "since_month", "until_month", *(() if one_user else ("last_user",)))
    parameters: list[BindParameter[Any]] = [bindparam(name, type_=BigInteger) for name in numbers]
    parameters += [bindparam(name, type_=Date) for name in ("since", "until")]
    return text(sql).bindparams(*parameters).columns(usage_date=Date(), total_cost=UsdAmount())


_COUNTED = {
    name: str(figure.compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    for name, figure in rollups.figures_of(Message).items()
}


def _sum(name: str, figure: str) -> str:
    """Sum a figure; PostgreSQL sums BIGINT as NUMERIC."""
    return f"sum({figure})" if name == "total_cost" else f"CAST(sum({figure}) AS BIGINT)"
