"""Add usage to both rollups in one transaction.

The rollups are the day by model, and the month. Adding is an upsert (`x = t.x + excluded.x`), never a read followed by
a write. Locks are always acquired in the same order: days, then months, each in the order of their keys.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple, Self, TypeVar, cast

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Table,
    bindparam,
    case,
    column,
    extract,
    func,
    literal_column,
    select,
    type_coerce,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock, money
from app.clock import Month
from app.db import database, ownership
from app.db.database import InsertInto
from app.db.sqlite_connections import BY_KEY
from app.errors import Conflict, TransactionConflict
from app.money import UsdAmount
from models import UserDailyTokenUsage, UserMonthlyTokenUsage

# The most tokens or messages in a row of a rollup: sums of a thousand rows fit into 64 bits.
MAX_COUNT = 2**53

DAYS = cast(Table, UserDailyTokenUsage.__table__)
MONTHS = cast(Table, UserMonthlyTokenUsage.__table__)


class Slot(NamedTuple):
    """Identify a row of the daily rollup.

    `model` is empty for a message without one. `clock.usage_date` never returns the first or last day of the calendar,
    for which PostgreSQL has no month.
    """

    user_id: int
    usage_date: date
    model: str

    @property
    def month(self) -> "UserMonth":
        """Return the key of the monthly rollup."""
        return self.user_id, Month.of(self.usage_date)


UserMonth = tuple[int, Month]
Key = TypeVar("Key", Slot, UserMonth)


@dataclass
class Sums:
    """Hold the figures of a rollup: tokens, dollars, and counts of messages."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_cost: Decimal = money.ZERO
    message_count: int = 0
    unpriced_count: int = 0
    estimated_count: int = 0

    @classmethod
    def of_message(
        cls, input_tokens: int, output_tokens: int | None, cost: Decimal | None, estimated: bool | None = None
    ) -> Self:
        """Return the figures of one message; an unknown cost adds no dollars."""
        return cls(input_tokens, output_tokens or 0, cost or money.ZERO, 1, cost is None, bool(estimated))

    @property
    def total_tokens(self) -> int:
        """Return input plus output."""
        return self.input_tokens + self.output_tokens

    def exceed_what_can_be_counted(self) -> bool:
        """Return whether a figure exceeds its column."""
        counts = (self.input_tokens, self.output_tokens, self.message_count)
        return self.total_cost > money.MAX_MONTHLY_COST or max(counts) > MAX_COUNT

    def values(self) -> dict[str, Any]:
        """Return the figures by name."""
        return dict(vars(self))

    def add(self, other: "Sums") -> None:
        """Add the other figures to these."""
        for name in SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(getattr(self, name) + getattr(other, name) for name in SUMMED))

    def __sub__(self, other: "Sums") -> "Sums":
        return Sums(*(getattr(self, name) - getattr(other, name) for name in SUMMED))

    def positive(self) -> "Sums":
        """Return the figures, with 0 for negative ones."""
        return Sums(*(max(figure, type(figure)(0)) for figure in self.values().values()))


SUMMED = tuple(field.name for field in fields(Sums))
"""The figures that are summed: one definition for every statement."""
FIGURES = ("input_tokens", "output_tokens", "total_tokens", *SUMMED[2:])
"""The figures of the monthly rollup, which also stores the total."""


def figures_of(messages: Any) -> dict[str, ColumnElement[Any]]:
    """Return one message's figures in SQL, equal to `Sums.of_message`."""
    zero, one = (literal_column(digit, Integer) for digit in "01")
    return {
        "input_tokens": messages.input_tokens,
        "output_tokens": func.coalesce(messages.output_tokens, zero),
        "total_cost": func.coalesce(messages.cost, literal_column("0", UsdAmount)),
        "message_count": one,
        "unpriced_count": case((messages.cost.is_(None), one), else_=zero),
        "estimated_count": case((messages.usage_estimated, one), else_=zero),
    }


def total(name: str, figure: ColumnElement[Any]) -> ColumnElement[Any]:
    """Sum a figure in SQL, cast to its column's type.

    PostgreSQL sums BIGINT as NUMERIC.
    """
    summed = func.sum(figure)
    return type_coerce(summed, UsdAmount()) if name == "total_cost" else sql_cast(summed, BigInteger)


def grouped(items: Iterable[tuple[Key, Sums]]) -> dict[Key, Sums]:
    """Add up the sums of each key."""
    groups: dict[Key, Sums] = {}
    for key, sums in items:
        groups.setdefault(key, Sums()).add(sums)
    return groups


async def add(session: AsyncSession, used: Mapping[Slot, Sums]) -> None:
    """Add non-negative sums to both rollups; create missing rows.

    Raises:
        Conflict: the cost of a month would exceed its column.
        TransactionConflict: a user was deleted concurrently.
    """
    months = grouped((slot.month, sums) for slot, sums in used.items())
    _refuse_too_costly(months.values())  # before more than 64 bits reach a driver
    # On Citus, a statement of two writes takes twice as long as two statements.
    in_two = database.is_sqlite(session) or ownership.is_on_citus(session.get_bind().dialect)
    if in_two or not used:
        await add_days(session, used)
        await add_months(session, months)
        return
    rows = _day_rows(used)
    new = {f"new_{name}": [row[name] for row in rows] for name in rows[0]}
    try:
        await session.execute(_adding_at_once(), {**new, "now": clock.now()})
    except IntegrityError as error:
        raise as_conflict(error) from None


async def add_days(session: AsyncSession, days: Mapping[Slot, Sums]) -> None:
    """Add non-negative sums to the days; raise the errors of `add`."""
    await _upsert(session, _adding_to_days(session), _day_rows(days))


async def add_months(session: AsyncSession, months: Mapping[UserMonth, Sums]) -> None:
    """Add non-negative sums to the months; raise the errors of `add`."""
    _refuse_too_costly(months.values())
    now = clock.now()
    rows = [
        {
            "user_id": user_id,
            "year": month.year,
            "month": month.month,
            **sums.values(),
            "total_tokens": sums.total_tokens,
            "last_updated": now,
            "created_at": now,
        }
        for (user_id, month), sums in sorted(months.items(), key=lambda item: item[0])
    ]
    await _upsert(session, _adding_to_months(session), rows)


async def _upsert(session: AsyncSession, statement: postgresql.Insert, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    try:
        await session.execute(statement, rows)
    except IntegrityError as error:
        raise as_conflict(error) from None


def _day_rows(days: Mapping[Slot, Sums]) -> list[dict[str, Any]]:
    ordered = sorted(days.items(), key=lambda item: item[0])
    return [{**slot._asdict(), **sums.values()} for slot, sums in ordered]


def as_conflict(error: IntegrityError) -> Exception:
    """Convert the violation of a constraint that callers cannot prevent."""
    if "_user_id_fkey" in str(error.orig):
        return TransactionConflict("the user was deleted concurrently")
    if "ck_user_monthly_token_usage_total_cost" in str(error.orig) or "ck_user_daily" in str(error.orig):
        return _too_costly()
    return error


def _refuse_too_costly(all_sums: Iterable[Sums]) -> None:
    if any(sums.exceed_what_can_be_counted() for sums in all_sums):  # SQLite would compute with floats
        raise _too_costly()


def _too_costly() -> Conflict:
    return Conflict("This user's month would exceed the largest amount that can be counted.")


def _added_to(statement: postgresql.Insert, table: Table, figures: Iterable[str], **more: Any) -> postgresql.Insert:
    added = {name: table.c[name] + statement.excluded[name] for name in figures}
    keys = ("user_id", "year", "month") if table is MONTHS else Slot._fields
    return statement.on_conflict_do_update(index_elements=keys, set_=added | more).execution_options(**BY_KEY)


def _days_added_to(insert: InsertInto) -> postgresql.Insert:
    return _added_to(insert(DAYS), DAYS, SUMMED)


def _months_added_to(insert: InsertInto) -> postgresql.Insert:
    statement = insert(MONTHS)
    return _added_to(statement, MONTHS, FIGURES, last_updated=statement.excluded.last_updated)


_adding_to_days = database.made_once(_days_added_to)
_adding_to_months = database.made_once(_months_added_to)


@functools.cache
def _adding_at_once() -> postgresql.Insert:
    """Build one statement of PostgreSQL for both upserts.

    The second upsert starts after the first, to keep the order of locks.
    """
    columns = [DAYS.c[name] for name in (*Slot._fields, *SUMMED)]
    arrays = (bindparam(f"new_{c.name}", type_=postgresql.ARRAY(c.type)) for c in columns)
    rows = func.unnest(*arrays).table_valued(*(column(c.name, c.type) for c in columns), name="rows")
    new = select(rows.render_derived()).cte("new")
    days = (
        _days_added_to(postgresql.insert)
        .from_select(new.c.keys(), select(new).order_by(*(new.c[name] for name in Slot._fields)))
        .returning(DAYS.c.user_id)
        .cte("day")
    )
    all_days = (
        select(func.count()).select_from(days).scalar_subquery()
    )  # counting the days makes the months wait for them
    month = (new.c.user_id, *(extract(part, new.c.usage_date) for part in ("year", "month")))
    sums = {name: func.sum(new.c[name]) for name in SUMMED}
    now = bindparam("now", type_=MONTHS.c.last_updated.type)
    more = {"total_tokens": sums["input_tokens"] + sums["output_tokens"], "last_updated": now, "created_at": now}
    by_month = select(*month, *sums.values(), *more.values()).where(all_days > 0)
    return _months_added_to(postgresql.insert).from_select(
        ["user_id", "year", "month", *sums, *more], by_month.group_by(*month).order_by(*month)
    )
