"""Find how far each rollup differs from the ledger, with one statement.

The statement reads one snapshot. A live transaction adds the same figures to the ledger and to both rollups, so a
deficit is the same in every snapshot. The ledger is `messages` together with `usage_adjustments`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Date,
    FromClause,
    Integer,
    Select,
    String,
    Table,
    and_,
    bindparam,
    except_,
    extract,
    func,
    literal_column,
    null,
    select,
    text,
    union_all,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.ext.asyncio import AsyncSession

from app.clock import Month
from app.db.database import is_sqlite
from models import Message, UsageAdjustment, User
from services.usage import rollups
from services.usage.rollups import DAYS, MONTHS, SUMMED, Slot, Sums, UserMonth

FIRST_MONTH, LAST_MONTH = Month.of(date.min), Month.of(date.max)
_BEFORE_ALL, _AFTER_ALL = -(2**62), 2**62
_MESSAGES, _ADJUSTMENTS = cast(Table, Message.__table__), cast(Table, UsageAdjustment.__table__)


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

    months: Mapping[UserMonth, MonthPair]
    days: Mapping[Slot, Pair]

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
    for row in await session.execute(_statement(sqlite), key_range.parameters()):
        side, user_id, usage_date, model, year, month, *figures = row
        sums = Sums(*figures)
        if not sums.total_cost.is_finite():
            raise ValueError("a stored cost is not a number")
        pair: Pair
        if usage_date is None:
            pair = months.setdefault((user_id, Month(year, month)), MonthPair())
        else:
            pair = days.setdefault(Slot(user_id, usage_date, model), Pair())
        setattr(pair, side, sums)
    return Deficits(months, {slot: pair for slot, pair in days.items() if not pair.in_sync})


_MEMORY = text("""
    SELECT set_config('work_mem', '64MB', true)
    WHERE pg_size_bytes(current_setting('work_mem')) < pg_size_bytes('64MB')
""")
"""Keep the sorts and hashes of a range in memory instead of on disk, until the transaction ends."""


@cache
def _statement(sqlite: bool) -> CompoundSelect[*tuple[Any, ...]]:
    """Select each side of every month of a range, and of the days that differ."""
    ledger, days = _ledger(sqlite), select(*_slot(DAYS), *_figures(DAYS)).where(_in_range(DAYS)).cte("days")
    number = sql_cast(MONTHS.c.year, BigInteger) * 100 + MONTHS.c.month
    first, last = (bindparam(name, type_=BigInteger) for name in ("since_month", "until_month"))
    found = _months("found", MONTHS, MONTHS.c.year, MONTHS.c.month).where(
        _of_users(MONTHS), number.between(first, last)
    )
    return union_all(
        _months("expected", ledger, *_month_of(ledger)),
        _months("in_days", days, *_month_of(days)),
        found,
        _days("expected", except_(select(ledger), select(days))),
        _days("found", except_(select(days), select(ledger))),
    )


def _ledger(sqlite: bool) -> CTE:
    """Select the sums of the ledger for every day and model."""
    slot = (_MESSAGES.c.user_id, _MESSAGES.c.usage_date, func.coalesce(_MESSAGES.c.model, _EMPTY).label("model"))
    sums = (rollups.total(name, figure).label(name) for name, figure in rollups.figures_of(_MESSAGES.c).items())
    counted = select(*slot, *sums).where(_in_range(_MESSAGES)).group_by(*slot)
    # Users are missing where foreign keys were not enforced. In WHERE, it would replace the range in the plan.
    if sqlite:
        counted = counted.having(_MESSAGES.c.user_id.in_(select(User.id)))
    adjusted = select(*_slot(_ADJUSTMENTS), *_figures(_ADJUSTMENTS)).where(_in_range(_ADJUSTMENTS))
    parts = union_all(counted, adjusted).subquery("parts")
    return select(*_slot(parts), *_sums(parts)).group_by(*_slot(parts)).cte("ledger")


def _months(
    side: str, table: FromClause, year: ColumnElement[int], month: ColumnElement[int]
) -> Select[*tuple[Any, ...]]:
    no_day = (sql_cast(null(), Date).label("usage_date"), _EMPTY.label("model"))
    key = (table.c.user_id, *no_day, year.label("year"), month.label("month"))
    return select(_literal(side), *key, *_sums(table)).group_by(table.c.user_id, year, month)


def _days(side: str, rows: CompoundSelect[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    slots = rows.subquery()
    no_month = sql_cast(null(), Integer)
    return select(_literal(side), *_slot(slots), no_month, no_month, *_figures(slots))


def _literal(word: str) -> ColumnElement[str]:
    return literal_column(f"'{word}'", String)


_EMPTY = _literal("")


def _month_of(table: FromClause) -> list[ColumnElement[int]]:
    return [sql_cast(extract(part, table.c.usage_date), Integer) for part in ("year", "month")]


def _sums(table: FromClause) -> list[ColumnElement[Any]]:
    return [rollups.total(name, table.c[name]).label(name) for name in SUMMED]


def _figures(table: FromClause) -> list[ColumnElement[Any]]:
    return [table.c[name] for name in SUMMED]


def _slot(table: FromClause) -> list[ColumnElement[Any]]:
    return [table.c[name] for name in Slot._fields]


def _of_users(table: FromClause) -> ColumnElement[bool]:
    first, last = (bindparam(name, type_=BigInteger) for name in ("first_user", "last_user"))
    return table.c.user_id.between(first, last)


def _in_range(table: FromClause) -> ColumnElement[bool]:
    since, until = (bindparam(name, type_=Date) for name in ("since", "until"))
    return and_(_of_users(table), table.c.usage_date.between(since, until))
