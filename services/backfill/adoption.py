"""Adopt old messages: find their usage, owner and day.

Rows of the earlier backend have no `user_id`, `usage_date` and `cost`. Adopting a row sets these three columns once, by
the same rules as for live messages; then every sum includes the row. A row that carries usage and breaks a rule stays
unchanged, and the run reports its reason.
"""

from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Row,
    Select,
    String,
    and_,
    bindparam,
    cast,
    column,
    func,
    inspect,
    null,
    or_,
    select,
    table,
    true,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock, money
from app.clock import Month
from models import Message, messages
from models.messages import MAX_TOKENS
from services.backfill import bulk_adoption
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
_messages = table(
    "messages",
    *(column(name) for name in ("id", "conversation_id", "user_id", "role", "created_at", "usage_date")),
    *(column(name) for name in ("input_tokens", "output_tokens", "model_cost")),
).alias("m")
_conversations = table("conversations", column("id"), column("user_id")).alias("c")
_users = table("users", column("id")).alias("u")


@dataclass(frozen=True)
class Shape:
    """Describe which tables and columns exist.

    A comparison does not migrate an old database first.
    """

    has_messages: bool
    has_tokens: bool
    has_model_cost: bool
    has_rollup: bool
    is_adopted: bool
    is_sqlite: bool
    is_owned: bool
    """Whether every message has its user, so that tables may be distributed: no join finds users by conversation."""


async def shape_of(session: AsyncSession) -> Shape:
    """Inspect the schema."""
    return await (await session.connection()).run_sync(_shape_of)


def _shape_of(connection: Connection) -> Shape:
    inspector = inspect(connection)
    tables = set(inspector.get_table_names())
    has_messages = {"messages", "conversations", "users"} <= tables
    columns = {item["name"]: item for item in inspector.get_columns("messages")} if has_messages else {}
    return Shape(
        has_messages=has_messages,
        has_tokens={"input_tokens", "output_tokens"} <= columns.keys(),
        has_model_cost="model_cost" in columns,
        has_rollup="user_monthly_token_usage" in tables,
        is_adopted="usage_adjustments" in tables,
        is_sqlite=connection.dialect.name == "sqlite",
        is_owned="user_id" in columns and not columns["user_id"]["nullable"],
    )


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
    usage: Usage | None
    reason: Reason | None
    usage_date: date | None
    """The day of a row that carries usage, even if its usage cannot be counted; None if the day cannot be read."""

    @property
    def month(self) -> UserMonth | None:
        """Return the row's month; None if its user or day is unknown."""
        if self.user_id is None or self.usage_date is None:
            return None
        return self.user_id, Month.of(self.usage_date)


def examine(row: Row[*tuple[Any, ...]], zone: tzinfo) -> Finding:
    """Examine one old row. Never raise, whatever the row holds."""
    if row.role != "assistant" or row.input_tokens is None:
        return Finding(row.id, row.owner, None, None, None)
    day = _day(row.created_at, zone)
    usage: Usage | Reason = "user_gone" if row.has_conversation else "conversation_gone"
    if row.owner is not None:
        usage = _usage(row, day)
    read_day = None if isinstance(day, str) else day
    if isinstance(usage, str):
        return Finding(row.id, row.owner, None, usage, read_day)
    return Finding(row.id, row.owner, usage, None, read_day)


def _usage(row: Row[*tuple[Any, ...]], day: date | Reason) -> Usage | Reason:
    output_tokens = 0 if row.output_tokens is None else row.output_tokens
    cost = _cost(row.model_cost)
    for tokens in (row.input_tokens, output_tokens):
        if wrong := _wrong_tokens(tokens):
            return wrong
    if isinstance(day, str):
        return day
    if isinstance(cost, str):
        return cost
    return Usage(day, row.input_tokens, output_tokens, cost)


def _wrong_tokens(tokens: Any) -> Reason | None:
    if not isinstance(tokens, int):
        return "unreadable_tokens"
    if tokens < 0:
        return "negative_tokens"
    return "absurd_tokens" if tokens > MAX_TOKENS else None


def _day(created_at: Any, zone: tzinfo) -> date | Reason:
    if created_at is None:
        return "no_created_at"
    try:
        instant = created_at if isinstance(created_at, datetime) else clock.parse_instant(created_at)
        return clock.usage_date(instant, zone)
    except (ValueError, TypeError, AttributeError, OverflowError):
        return "unreadable_created_at"


def _cost(model_cost: Any) -> Decimal | Reason | None:
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


def _old_rows(shape: Shape, users: Collection[int] | None) -> Select[*tuple[Any, ...]]:
    """Select the rows that are not adopted, by id.

    Each row has its owner, and whether its conversation exists.
    """
    m, c, u = _messages.c, _conversations.c, _users.c
    own_user = m.user_id if shape.is_adopted else null()
    owner = m.user_id if shape.is_owned else func.coalesce(own_user, u.id)
    joined = _messages.outerjoin(_conversations, c.id == m.conversation_id).outerjoin(_users, u.id == c.user_id)
    statement = (
        select(
            m.id,
            m.role,
            # The driver raises for PostgreSQL's instants outside the range of Python's.
            (m.created_at if shape.is_sqlite else cast(m.created_at, String)).label("created_at"),
            (m.input_tokens if shape.has_tokens else null()).label("input_tokens"),
            (m.output_tokens if shape.has_tokens else null()).label("output_tokens"),
            (m.model_cost if shape.has_model_cost else null()).label("model_cost"),
            owner.label("owner"),
            (true() if shape.is_owned else or_(c.id.is_not(None), own_user.is_not(None))).label("has_conversation"),
        )
        .select_from(_messages if shape.is_owned else joined)
        .order_by(m.id)
    )
    statement = statement.where(_is_old(shape))
    return statement if users is None else statement.where(owner.in_(users))


def _is_old(shape: Shape) -> ColumnElement[bool]:
    m = _messages.c
    if shape.is_adopted:  # true of every id; without this condition SQLite does not use the index
        return and_(m.id >= messages.LOWEST_ID, messages.is_not_adopted(m))
    return and_(m.role == "assistant", m.input_tokens.is_not(None))


def _old_ids(shape: Shape, users: Collection[int] | None) -> Select[*tuple[Any, ...]]:
    """Select the ids of these rows, if possible from the index alone."""
    if users is None:
        return select(_messages.c.id).where(_is_old(shape)).order_by(_messages.c.id)
    return _old_rows(shape, users).with_only_columns(_messages.c.id)


async def rows(
    session: AsyncSession, shape: Shape, users: Collection[int] | None
) -> AsyncIterator[Row[*tuple[Any, ...]]]:
    """Yield all rows that are not adopted, for `examine`."""
    if not (shape.has_messages and shape.has_tokens):
        return
    async for row in await session.stream(_old_rows(shape, users).execution_options(yield_per=BATCH_ROWS)):
        yield row


async def count(session: AsyncSession, shape: Shape, users: Collection[int] | None) -> int:
    """Return the number of rows that are not adopted."""
    if not (shape.has_messages and shape.has_tokens):
        return 0
    rows = _old_ids(shape, users).order_by(None).subquery()
    return await session.scalar(select(func.count()).select_from(rows)) or 0


class Batch(NamedTuple):
    """Describe an adopted batch: last id, number of rows, and skip reasons."""

    last_id: int
    rows: int
    skipped: Counter[Reason]


class OldRows(NamedTuple):
    """Select the old rows to adopt, and their time zone.

    `users` is None for all users.
    """

    shape: Shape
    users: Collection[int] | None
    zone: tzinfo

    def part(self, after_id: int, last_id: int) -> bulk_adoption.Part:
        """Return the rows with ids after `after_id`, up to `last_id`."""
        return bulk_adoption.Part(after_id, last_id, self.users, self.shape.has_model_cost, self.zone)


async def adopt_batch(session: AsyncSession, old: OldRows, after_id: int, limit: int = BATCH_ROWS) -> Batch | None:
    """Adopt the next rows in the caller's transaction.

    Returns:
        The batch, or None if no rows follow `after_id`.
    """
    ids = _old_ids(old.shape, old.users).where(_messages.c.id > after_id).limit(limit).subquery().c.id
    last_id, rows = (await session.execute(select(func.max(ids), func.count(ids)))).one()
    if last_id is None:
        return None
    if not old.shape.is_owned:
        await bulk_adoption.adopt(session, old.part(after_id, last_id))
    odd_rows = _old_rows(old.shape, old.users).where(_messages.c.id > after_id, _messages.c.id <= last_id)
    if not old.shape.is_owned:  # Citus cannot lock the rows of several users; only runs write these, one at a time
        odd_rows = odd_rows.with_for_update(of=_messages)
    found = [examine(row, old.zone) for row in await session.execute(odd_rows)]
    await _store(session, [finding for finding in found if finding.user_id is not None], old.shape.is_owned)
    skipped = Counter(finding.reason for finding in found if finding.reason is not None)
    return Batch(last_id, rows, skipped)


async def _store(session: AsyncSession, found: Sequence[Finding], is_owned: bool) -> None:
    if not found:
        return
    statement = (
        update(Message)
        .where(Message.id == bindparam("message_id"))
        .values(
            usage_date=bindparam("day"),
            cost=bindparam("dollars", type_=Message.cost.type),
        )
    )
    owner: BindParameter[Any] = bindparam("owner")
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
