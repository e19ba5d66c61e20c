"""The rollups of the ledger: by day and conversation, by day, and by month. What is counted changes all three at once.

Adding is an upsert (`x = t.x + excluded.x`), never a read followed by a write. Locks are always taken in the same
order: days of conversations, then days, then months, each by their keys.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar, cast

from sqlalchemy import CTE, Table, and_, bindparam, case, column, extract, func, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.dml import ReturningInsert

from app import clock, database, money
from app.clock import Month
from app.database import InsertInto
from app.errors import Conflict, TransactionConflict
from models import ConversationDailyTokenUsage, UserDailyTokenUsage, UserMonthlyTokenUsage

CONVERSATION_DAYS = cast(Table, ConversationDailyTokenUsage.__table__)
DAYS = cast(Table, UserDailyTokenUsage.__table__)
MONTHS = cast(Table, UserMonthlyTokenUsage.__table__)
SUMMED = ("input_tokens", "output_tokens", "total_cost", "message_count")
FIGURES = ("input_tokens", "output_tokens", "total_tokens", "total_cost", "message_count")


class Slot(NamedTuple):
    """Where a counted message belongs: the finest rollup's key. The conversation is empty where there is none.

    The day is one of `clock.usage_date`: never the first or last of the calendar, which PostgreSQL has no month of.
    """

    user_id: int
    usage_date: date
    conversation_id: str

    @property
    def day(self) -> "UserDay":
        """The key of the daily rollup."""
        return self.user_id, self.usage_date

    @property
    def month(self) -> "UserMonth":
        """The key of the monthly rollup."""
        return self.user_id, Month.of(self.usage_date)


UserDay = tuple[int, date]
UserMonth = tuple[int, Month]
Key = TypeVar("Key", UserDay, UserMonth)


@dataclass
class Sums:
    """Token counts, dollars and messages; what is added to a rollup."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_cost: Decimal = field(default=money.ZERO)
    message_count: int = 0
    last_message_at: datetime | None = field(default=None, compare=False)

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def __iadd__(self, other: "Sums") -> "Sums":
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.total_cost += other.total_cost
        self.message_count += other.message_count
        if other.last_message_at and (self.last_message_at is None or other.last_message_at > self.last_message_at):
            self.last_message_at = other.last_message_at
        return self

    def __neg__(self) -> "Sums":
        return Sums(-self.input_tokens, -self.output_tokens, -self.total_cost, -self.message_count)

    def __sub__(self, other: "Sums") -> "Sums":
        difference = -other
        difference += self
        return difference


def of_one(input_tokens: int, output_tokens: int | None, cost: Decimal | None, created_at: datetime | None) -> Sums:
    """The sums of one message. An unknown cost adds nothing to the dollars."""
    return Sums(input_tokens, output_tokens or 0, money.ZERO if cost is None else cost, 1, created_at)


async def add(session: AsyncSession, used: Mapping[Slot, Sums]) -> None:
    """Adds sums, none of them negative, to all rollups; makes the rows that are missing.

    Raises:
        Conflict: a month would cost more than its column can hold.
        TransactionConflict: a user was deleted at this moment.
    """
    if not used:
        return
    months = grouped((slot.month, sums) for slot, sums in used.items())
    if any(sums.total_cost > money.MAX_MONTHLY_COST for sums in months.values()):  # beyond what SQLite counts at all
        raise _too_costly()
    try:
        if database.is_sqlite(session):
            await _add_in_turn(session, used, months)
        else:
            await _add_at_once(session, used)
    except IntegrityError as error:
        raise as_conflict(error) from None


async def _add_in_turn(session: AsyncSession, used: Mapping[Slot, Sums], months: Mapping[UserMonth, Sums]) -> None:
    opened = await _add_conversation_days(session, used)
    await _add_days(session, grouped((slot.day, sums) for slot, sums in used.items()), opened)
    await add_months(session, months)


async def _add_at_once(session: AsyncSession, used: Mapping[Slot, Sums]) -> None:
    """The same on PostgreSQL: three upserts in one statement, and so in one round trip."""
    rows = _conversation_day_rows(used)
    alone = len(rows) == 1
    new = {_new_name(name): rows[0][name] if alone else [row[name] for row in rows] for name in rows[0]}
    await session.execute(_adding_at_once(alone), {**new, "now": clock.now()})


def as_conflict(error: IntegrityError) -> Exception:
    """What the failure of a constraint means, where the callers cannot help it."""
    if "_user_id_fkey" in str(error.orig):
        return TransactionConflict("the user was deleted at this moment")
    if "ck_user_monthly_token_usage_total_cost" in str(error.orig):
        return _too_costly()
    return error


def _too_costly() -> Conflict:
    return Conflict("The month of this user would cost more than can be counted.")


def grouped(items: Iterable[tuple[Key, Sums]]) -> dict[Key, Sums]:
    """The sums of each key."""
    groups: dict[Key, Sums] = {}
    for key, sums in items:
        group = groups.setdefault(key, Sums())
        group += sums
    return groups


def _values(sums: Sums) -> dict[str, Any]:
    return {name: getattr(sums, name) for name in SUMMED}


def _conversation_day_rows(used: Mapping[Slot, Sums]) -> list[dict[str, Any]]:
    return [{**slot._asdict(), **_values(sums), "last_message_at": sums.last_message_at} for slot, sums in used.items()]


async def _add_conversation_days(session: AsyncSession, used: Mapping[Slot, Sums]) -> Counter[UserDay]:
    """Answers with how many conversations had nothing on a day before: their rows have just what was added."""
    found = await session.execute(_adding_conversation_days(session), _conversation_day_rows(used))
    return Counter(
        Slot(*key).day
        for *key, count in found
        if Slot(*key).conversation_id and count == used[Slot(*key)].message_count
    )


async def _add_days(session: AsyncSession, days: Mapping[UserDay, Sums], opened: Counter[UserDay]) -> None:
    rows = [
        {"user_id": day[0], "usage_date": day[1], **_values(sums), "conversation_count": opened[day]}
        for day, sums in days.items()
    ]
    await session.execute(_adding_days(session), rows)


async def add_months(session: AsyncSession, months: Mapping[UserMonth, Sums]) -> None:
    """Adds sums, none of them negative, to the months alone; makes those that are missing. Raises as `add`."""
    if not months:
        return
    now = clock.now()
    rows = [
        {
            "user_id": user_id,
            "year": month.year,
            "month": month.month,
            **_values(sums),
            "total_tokens": sums.total_tokens,
            "last_updated": now,
            "created_at": now,
        }
        for (user_id, month), sums in sorted(months.items())
    ]
    try:
        await session.execute(_adding_months(session), rows)
    except IntegrityError as error:
        raise as_conflict(error) from None


def _conversation_days_added_to(insert: InsertInto) -> postgresql.Insert:
    table, statement = CONVERSATION_DAYS, insert(CONVERSATION_DAYS)
    newer = statement.excluded.last_message_at > table.c.last_message_at
    latest = case((newer, statement.excluded.last_message_at), else_=table.c.last_message_at)
    return _adding(statement, table, SUMMED, last_message_at=latest)


def _days_added_to(insert: InsertInto) -> postgresql.Insert:
    return _adding(insert(DAYS), DAYS, (*SUMMED, "conversation_count"))


def _months_added_to(insert: InsertInto) -> postgresql.Insert:
    statement = insert(MONTHS)
    return _adding(statement, MONTHS, FIGURES, last_updated=statement.excluded.last_updated)


@database.made_once
def _adding_conversation_days(insert: InsertInto) -> ReturningInsert[*tuple[Any, ...]]:
    columns = CONVERSATION_DAYS.c
    return _conversation_days_added_to(insert).returning(
        columns.user_id, columns.usage_date, columns.conversation_id, columns.message_count
    )


_adding_days = database.made_once(_days_added_to)
_adding_months = database.made_once(_months_added_to)


@functools.cache
def _adding_at_once(alone: bool) -> postgresql.Insert:
    """Three upserts; each begins when all of the one before is done, so that locks keep their order.

    Args:
        alone: the parameters are of one row, which is faster than arrays of one.
    """
    new = _new_rows(alone)
    sums = {name: func.sum(new.c[name]) for name in SUMMED}

    talks = (
        _conversation_days_added_to(postgresql.insert)
        .from_select(new.c.keys(), select(new).order_by(*(new.c[name] for name in Slot._fields)))
        .returning(*(CONVERSATION_DAYS.c[name] for name in (*Slot._fields, "message_count")))
        .cte("talk")
    )

    same = and_(*(talks.c[name] == new.c[name] for name in Slot._fields))
    is_opened = and_(new.c.conversation_id != "", talks.c.message_count == new.c.message_count)
    day = (new.c.user_id, new.c.usage_date)  # sorted, and so after the last of the talks
    by_day = select(*day, *sums.values(), func.count().filter(is_opened)).join_from(new, talks, same)
    days = (
        _days_added_to(postgresql.insert)
        .from_select(["user_id", "usage_date", *sums, "conversation_count"], by_day.group_by(*day).order_by(*day))
        .returning(DAYS.c.user_id)
        .cte("day")
    )

    all_days = select(func.count()).select_from(days).scalar_subquery()  # to count them they have to be there
    month = (new.c.user_id, *(extract(part, new.c.usage_date) for part in ("year", "month")))
    now = bindparam("now", type_=MONTHS.c.last_updated.type)
    more = {"total_tokens": sums["input_tokens"] + sums["output_tokens"], "last_updated": now, "created_at": now}
    by_month = select(*month, *sums.values(), *more.values()).where(all_days > 0)
    return _months_added_to(postgresql.insert).from_select(
        ["user_id", "year", "month", *sums, *more], by_month.group_by(*month).order_by(*month)
    )


def _new_rows(alone: bool) -> CTE:
    columns = CONVERSATION_DAYS.columns
    if alone:
        return select(*(bindparam(_new_name(c.name), type_=c.type).label(c.name) for c in columns)).cte("new")
    arrays = (bindparam(_new_name(c.name), type_=postgresql.ARRAY(c.type)) for c in columns)
    rows = func.unnest(*arrays).table_valued(*(column(c.name, c.type) for c in columns), name="rows")
    return select(rows.render_derived()).cte("new")


def _new_name(name: str) -> str:
    return f"new_{name}"


def _adding(statement: postgresql.Insert, table: Table, figures: Iterable[str], **more: Any) -> postgresql.Insert:
    added = {name: table.c[name] + statement.excluded[name] for name in figures}
    keys = ("user_id", "year", "month") if table is MONTHS else tuple(table.primary_key.columns.keys())
    return statement.on_conflict_do_update(index_elements=keys, set_=added | more)
