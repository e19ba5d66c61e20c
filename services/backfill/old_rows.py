"""Read rows of the earlier backend: find usage, owner and day.

They have no `user_id`, `usage_date` and `cost`. `adoption` sets these three columns once, by the same rules as for live
messages; then every sum includes the row. A row that carries usage and breaks a rule stays unchanged, and the run
reports its reason.
"""

import bisect
import re
from collections.abc import AsyncIterator, Collection
from datetime import date, datetime, tzinfo
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    String,
    and_,
    cast,
    column,
    func,
    inspect,
    null,
    or_,
    select,
    table,
    true,
)
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock, money
from app.clock import Month
from models import messages
from models.messages import MAX_TOKENS
from services.usage.rollups import Sums, UserMonth

Reason = Literal[
    "conversation_gone",
    "user_gone",
    "unreadable_tokens",
    "negative_tokens",
    "absurd_tokens",
    "no_created_at",
    "unreadable_created_at",
    "unreadable_cost",
    "negative_cost",
    "absurd_cost",
]
BATCH_ROWS = 5_000

# Untyped on purpose: old rows may hold values that do not fit their column types. They are read as the driver returns
# them.
MESSAGES = table(
    "messages",
    *(column(name) for name in ("id", "conversation_id", "user_id", "role", "created_at", "usage_date")),
    *(column(name) for name in ("input_tokens", "output_tokens", "model_cost")),
).alias("m")
_conversations = table("conversations", column("id"), column("user_id")).alias("c")
_users = table("users", column("id")).alias("u")


class OldRows(NamedTuple):
    """Describe where old rows are, and which of them to read.

    A comparison does not migrate an old database first.
    """

    columns: frozenset[str]
    """The columns of the messages; none if there are no messages, conversations or users."""
    has_rollup: bool
    is_adopted: bool
    """Whether the schema is this backend's."""
    is_owned: bool
    """Whether every message has its user, so that tables may be distributed: no join finds users by conversation."""
    is_sqlite: bool
    users: Collection[int] | None
    """Whose rows to read; None for all."""
    zone: tzinfo


async def find(session: AsyncSession, users: Collection[int] | None, zone: tzinfo) -> OldRows:
    """Inspect the schema."""

    def inspected(connection: Connection) -> OldRows:
        inspector = inspect(connection)
        tables = set(inspector.get_table_names())
        has_messages = {"messages", "conversations", "users"} <= tables
        columns = {item["name"]: item for item in inspector.get_columns("messages")} if has_messages else {}
        return OldRows(
            columns=frozenset(columns),
            has_rollup="user_monthly_token_usage" in tables,
            is_adopted="usage_adjustments" in tables,
            is_owned="user_id" in columns and not columns["user_id"]["nullable"],
            is_sqlite=connection.dialect.name == "sqlite",
            users=users,
            zone=zone,
        )

    return await (await session.connection()).run_sync(inspected)


class Usage(NamedTuple):
    """Hold the usage of an old row; `cost` is in US dollars."""

    usage_date: date
    input_tokens: int
    output_tokens: int
    cost: Decimal | None

    def sums(self) -> Sums:
        """Return what the row adds to the rollups."""
        return Sums.of_message(self.input_tokens, self.output_tokens, self.cost)


class Finding(NamedTuple):
    """Describe an old row: owner, and usage or skip reason.

    A row that carries no usage has neither usage nor reason.
    """

    message_id: int
    user_id: int | None
    usage: Usage | None = None
    reason: Reason | None = None
    month: UserMonth | None = None
    """The month of a row that carries usage, even if its usage cannot be counted; None if user or month is unknown."""


def examine(row: Row[*tuple[Any, ...]], zone: tzinfo) -> Finding:
    """Examine one old row. Never raise, whatever the row holds."""
    if row.role != "assistant" or row.input_tokens is None:
        return Finding(row.id, row.owner)
    day, cost = day_of(row.created_at, zone), cost_of(row.model_cost)
    month = _month_of(row.created_at) if isinstance(day, str) else Month.of(day)
    of_user = None if row.owner is None or month is None else (row.owner, month)
    output_tokens = 0 if row.output_tokens is None else row.output_tokens
    wrong: Reason | None = None
    if row.owner is None:
        wrong = "user_gone" if row.has_conversation else "conversation_gone"
    wrong = wrong or _wrong_tokens(row.input_tokens) or _wrong_tokens(output_tokens)
    if isinstance(day, str):
        return Finding(row.id, row.owner, None, wrong or day, of_user)
    if wrong:
        return Finding(row.id, row.owner, None, wrong, of_user)
    if isinstance(cost, str):
        return Finding(row.id, row.owner, None, cost, of_user)
    return Finding(row.id, row.owner, Usage(day, row.input_tokens, output_tokens, cost), None, of_user)


def counted_before(row: Row[*tuple[Any, ...]]) -> Sums:
    """Return what the earlier backend counted for a broken row.

    Negative figures are left out: a month exceeds its messages by less, not by more, because of them.
    """
    input_tokens, output_tokens = (
        max(value, 0) if isinstance(value, int) else 0 for value in (row.input_tokens, row.output_tokens)
    )
    try:
        cost = max(money.from_float(float(row.model_cost)), money.ZERO)
    except (ValueError, TypeError, OverflowError):
        cost = money.ZERO
    return Sums(input_tokens, output_tokens, cost, message_count=1)


def _month_of(unreadable: Any) -> Month | None:
    """Return the month into which an unreadable date sorts.

    SQLite compares texts, so that a query for the instants of April finds 2024-04-31.
    """
    if not isinstance(unreadable, str) or not re.match(r"\d{4}", unreadable, re.ASCII):
        return None
    year = int(unreadable[:4])
    starts = [f"{year:04}-{month:02}-01 00:00:00.000000" for month in range(1, 13)]
    month = bisect.bisect_right(starts, unreadable)
    year, month = (year, month) if month else (year - 1, 12)
    return Month(year, month) if year >= date.min.year else None


def _wrong_tokens(tokens: Any) -> Reason | None:
    if not isinstance(tokens, int):
        return "unreadable_tokens"
    if tokens < 0:
        return "negative_tokens"
    return "absurd_tokens" if tokens > MAX_TOKENS else None


def day_of(created_at: Any, zone: tzinfo) -> date | Reason:
    """Return a stored value's usage date, or why it has none."""
    if created_at is None:
        return "no_created_at"
    try:
        instant = created_at if isinstance(created_at, datetime) else clock.parse_instant(created_at)
        return clock.usage_date(instant, zone)
    except (ValueError, TypeError, AttributeError, OverflowError):
        return "unreadable_created_at"


def cost_of(model_cost: Any) -> Decimal | Reason | None:
    """Return a stored value as dollars, or why it is none."""
    if model_cost is None:
        return None
    if not isinstance(model_cost, int | float):
        return "unreadable_cost"
    if model_cost < 0:
        return "negative_cost"
    try:
        cost = money.from_float(float(model_cost))
    except (ValueError, OverflowError):
        return "absurd_cost"
    return cost if cost <= money.MAX_MESSAGE_COST else "absurd_cost"


def statement(old: OldRows) -> Select[*tuple[Any, ...]]:
    """Select the rows that are not adopted, by id, for `examine`."""
    m, c, u = MESSAGES.c, _conversations.c, _users.c
    own_user = m.user_id if old.is_adopted else null()
    owner = m.user_id if old.is_owned else func.coalesce(own_user, u.id)
    joined = MESSAGES.outerjoin(_conversations, c.id == m.conversation_id).outerjoin(_users, u.id == c.user_id)
    rows = (
        select(
            m.id,
            m.role,
            # The driver raises for PostgreSQL's instants outside the range of Python's.
            (m.created_at if old.is_sqlite else cast(m.created_at, String)).label("created_at"),
            m.input_tokens,
            m.output_tokens,
            (m.model_cost if "model_cost" in old.columns else null()).label("model_cost"),
            owner.label("owner"),
            (true() if old.is_owned else or_(c.id.is_not(None), own_user.is_not(None))).label("has_conversation"),
        )
        .select_from(MESSAGES if old.is_owned else joined)
        .where(_is_old(old))
        .order_by(m.id)
    )
    return rows if old.users is None else rows.where(owner.in_(old.users))


def _is_old(old: OldRows) -> ColumnElement[bool]:
    m = MESSAGES.c
    if old.is_adopted:  # true of every id; without this condition SQLite does not use the index
        return and_(m.id >= messages.LOWEST_ID, messages.is_not_adopted(m))
    return and_(m.role == "assistant", m.input_tokens.is_not(None))


def ids(old: OldRows) -> Select[int]:
    """Select the ids of these rows, if possible from the index alone."""
    if old.users is None:
        return select(MESSAGES.c.id).where(_is_old(old)).order_by(MESSAGES.c.id)
    return statement(old).with_only_columns(MESSAGES.c.id)


def _carry_usage(old: OldRows) -> bool:
    return {"input_tokens", "output_tokens"} <= old.columns


async def count(session: AsyncSession, old: OldRows) -> int:
    """Return the number of rows that are not adopted."""
    if not _carry_usage(old):
        return 0
    return await session.scalar(select(func.count()).select_from(ids(old).order_by(None).subquery())) or 0


async def read(session: AsyncSession, old: OldRows) -> AsyncIterator[Row[*tuple[Any, ...]]]:
    """Yield all rows that are not adopted, for `examine`."""
    if _carry_usage(old):
        async for row in await session.stream(statement(old).execution_options(yield_per=BATCH_ROWS)):
            yield row
