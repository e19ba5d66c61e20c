"""Find how far each rollup differs from the ledger, with one statement.

The statement reads one snapshot. A live transaction adds the same figures to the ledger and to both rollups, so a
deficit is the same in every snapshot. The ledger is `messages` together with `usage_adjustments`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Date,
    FromClause,
    Integer,
    Label,
    Row,
    Select,
    String,
    Table,
    and_,
    bindparam,
    extract,
    func,
    literal_column,
    null,
    or_,
    select,
    text,
    type_coerce,
    union_all,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import TypeEngine

from app.clock import Month
from app.db import ownership
from app.db.database import is_sqlite
from app.money import UsdAmount
from models import Message, UsageAdjustment, User
from services.usage import rollups
from services.usage.rollups import DAYS, MONTHS, SUMMED, Slot, Sums, UserMonth

FIRST_MONTH, LAST_MONTH = Month.of(date.min), Month.of(date.max)
_BEFORE_ALL, _AFTER_ALL = -(2**62), 2**62
OfUsers = Callable[[FromClause], ColumnElement[bool]]
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
        expected, found, in_days = _sums_of(row)
        if row.usage_date is None:
            key = row.user_id, Month(row.year, row.month)
            months[key] = MonthPair(expected, found if row.is_found else None, in_days)
        else:
            slot = Slot(row.user_id, row.usage_date, row.model)
            days[slot] = Pair(expected, found if row.is_found else None)
    return Deficits(months, days)


_MEMORY = text("""
    SELECT set_config('work_mem', '64MB', true)
    WHERE pg_size_bytes(current_setting('work_mem')) < pg_size_bytes('64MB')
""")
"""Keep the sorts and hashes of a range in memory instead of on disk, until the transaction ends."""

_SIDES = ("expected", "found", "in_days")
_KEY_COLUMNS = ("user_id", "usage_date", "model", "year", "month", "is_found")


def _sums_of(row: Row[*tuple[Any, ...]]) -> Iterable[Sums]:
    width = len(SUMMED)
    for start in range(len(_KEY_COLUMNS), len(_KEY_COLUMNS) + len(_SIDES) * width, width):
        sums = Sums(*row[start : start + width])
        if not sums.total_cost.is_finite():
            raise ValueError("a stored cost is not a number")
        yield sums


@cache
def _statement(sqlite: bool, one_user: bool = False) -> Select[*tuple[Any, ...]]:
    """Select every month of a range, and its days that differ.

    Each level is a UNION ALL of the ledger and the rollup, summed by key. Rows that one side lacks therefore need no
    outer join. The statement for one user names the user, so that it reads one partition, or one node of Citus: only
    there it has one snapshot.
    """
    of_users = _of_user if one_user else _of_users
    days = _days(sqlite, of_users)
    months = _months(days, of_users)
    differs = or_(*(days.c[f"expected_{name}"] != days.c[f"found_{name}"] for name in SUMMED))
    is_empty = and_(days.c.is_found == _ONE, days.c.expected_message_count == _ZERO)
    no_days = [_nothing(name).label(f"in_days_{name}") for name in SUMMED]
    both = _columns(days, _SIDES[:2])
    nowhere = sql_cast(null(), Integer)
    day_rows = select(
        *(days.c[name] for name in Slot._fields), nowhere.label("year"), nowhere.label("month"), days.c.is_found
    ).add_columns(*both, *no_days)
    no_day = (sql_cast(null(), Date).label("usage_date"), _EMPTY.label("model"))
    month_rows = select(months.c.user_id, *no_day, months.c.year, months.c.month, months.c.is_found).add_columns(
        *_columns(months, _SIDES)
    )
    rows = union_all(month_rows, day_rows.where(or_(differs, is_empty))).subquery("rows")
    return select(*(type_coerce(c, _type_of(c.name)).label(c.name) for c in rows.c))


def _days(sqlite: bool, of_users: OfUsers) -> CTE:
    """Select both sides of every day and model that either side has."""
    slot = (_MESSAGES.c.user_id, _MESSAGES.c.usage_date, func.coalesce(_MESSAGES.c.model, _EMPTY).label("model"))
    sums = (
        rollups.total(name, expression).label(f"expected_{name}")
        for name, expression in rollups.figures_of(_MESSAGES.c).items()
    )
    ledger = select(*slot, *sums).where(_in_days(_MESSAGES, of_users)).group_by(*slot)
    # Users are missing where foreign keys were not enforced. In WHERE, it would replace the range in the plan.
    if sqlite:
        ledger = ledger.having(_MESSAGES.c.user_id.in_(select(User.id)))
    counted = ledger.subquery("counted")
    nothing_expected = [_nothing(name).label(f"expected_{name}") for name in SUMMED]
    nothing_found = [_nothing(name).label(f"found_{name}") for name in SUMMED]
    key = [counted.c[name] for name in Slot._fields]
    parts = union_all(
        select(*key, *_columns(counted, _SIDES[:1]), *nothing_found, _ZERO.label("is_found")),
        select(*_slot(_ADJUSTMENTS), *_figures(_ADJUSTMENTS, "expected"), *nothing_found, _ZERO).where(
            _in_days(_ADJUSTMENTS, of_users)
        ),
        select(*_slot(DAYS), *nothing_expected, *_figures(DAYS, "found"), _ONE).where(_in_days(DAYS, of_users)),
    ).subquery("day_parts")
    return _paired(parts, Slot._fields, _SIDES[:2]).cte("days")


def _months(days: CTE, of_users: OfUsers) -> CTE:
    """Select both sides of every month that either side has.

    Each month also has the sums of its days in the daily rollup.
    """
    year, month = (sql_cast(extract(part, days.c.usage_date), Integer).label(part) for part in ("year", "month"))
    nothing = {side: [_nothing(name).label(f"{side}_{name}") for name in SUMMED] for side in _SIDES}
    in_days = [days.c[f"found_{name}"].label(f"in_days_{name}") for name in SUMMED]
    number = sql_cast(MONTHS.c.year, BigInteger) * 100 + MONTHS.c.month
    first, last = (bindparam(name, type_=BigInteger) for name in ("since_month", "until_month"))
    parts = union_all(
        select(days.c.user_id, year, month, *_columns(days, _SIDES[:1]), *nothing["found"], *in_days).add_columns(
            _ZERO.label("is_found")
        ),
        select(MONTHS.c.user_id, MONTHS.c.year, MONTHS.c.month, *nothing["expected"], *_figures(MONTHS, "found"))
        .add_columns(*nothing["in_days"], _ONE)
        .where(of_users(MONTHS), number.between(first, last)),
    ).subquery("month_parts")
    return _paired(parts, ("user_id", "year", "month"), _SIDES).cte("months")


def _paired(parts: FromClause, keys: Iterable[str], sides: Iterable[str]) -> Select[*tuple[Any, ...]]:
    key = [parts.c[name] for name in keys]
    sums = [rollups.total(name, parts.c[f"{side}_{name}"]).label(f"{side}_{name}") for side in sides for name in SUMMED]
    return select(*key, func.max(parts.c.is_found).label("is_found"), *sums).group_by(*key)


_EMPTY = literal_column("''", String)
_ZERO, _ONE = (literal_column(digit, Integer) for digit in "01")


def _type_of(name: str) -> TypeEngine[Any]:
    special: dict[str, TypeEngine[Any]] = {"usage_date": Date(), "model": String()}
    return UsdAmount() if name.endswith("total_cost") else special.get(name, BigInteger())


def _nothing(name: str) -> ColumnElement[Any]:
    return literal_column("0", _type_of(name))


def _columns(table: FromClause, sides: Iterable[str]) -> list[ColumnElement[Any]]:
    return [table.c[f"{side}_{name}"] for side in sides for name in SUMMED]


def _figures(table: FromClause, side: str) -> list[Label[Any]]:
    return [table.c[name].label(f"{side}_{name}") for name in SUMMED]


def _slot(table: FromClause) -> list[ColumnElement[Any]]:
    return [table.c[name] for name in Slot._fields]


def _of_users(table: FromClause) -> ColumnElement[bool]:
    first, last = (bindparam(name, type_=BigInteger) for name in ("first_user", "last_user"))
    return table.c.user_id.between(first, last)


def _of_user(table: FromClause) -> ColumnElement[bool]:
    return table.c.user_id == bindparam("first_user", type_=BigInteger)


def _in_days(table: FromClause, of_users: OfUsers) -> ColumnElement[bool]:
    since, until = (bindparam(name, type_=Date) for name in ("since", "until"))
    return and_(of_users(table), table.c.usage_date.between(since, until))
