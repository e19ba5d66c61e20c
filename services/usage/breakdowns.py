"""Read a month by days, and a day by conversations.

Days are from the rollup, conversations from the ledger.
"""

import functools
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Date,
    Integer,
    Select,
    String,
    Subquery,
    and_,
    bindparam,
    case,
    func,
    null,
    or_,
    select,
    true,
    type_coerce,
    union_all,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.clock import Month, UtcDateTime
from app.db.database import Database, is_sqlite
from app.errors import Unauthenticated
from app.security.tokens import Claims
from models import Conversation, Message, UsageAdjustment, User, UserDailyTokenUsage
from models.users import IS_ACTIVE
from services.accounts import sessions
from services.usage import rollups
from services.usage.rollups import SUMMED

Day, Adjustment = UserDailyTokenUsage, UsageAdjustment


class DayStats(NamedTuple):
    """Hold the usage of one user on one day."""

    date: date
    conversation_count: int
    input_tokens: int
    output_tokens: int
    total_cost: Decimal
    message_count: int
    unpriced_count: int
    estimated_count: int


class ConversationStats(NamedTuple):
    """Hold the usage of a conversation (None: of none) on one day."""

    conversation_id: str | None
    conversation_title: str | None
    model_type: str | None
    last_message_at: datetime | None
    input_tokens: int
    output_tokens: int
    total_cost: Decimal
    message_count: int
    unpriced_count: int
    estimated_count: int


async def days(database: Database, caller: Claims, month: Month) -> list[DayStats]:
    """Return the days of a month with usage, newest first.

    Raises:
        Unauthenticated: the user is deleted or inactive, or the token is revoked.
    """
    values = {"first_day": month.first_day, "last_day": month.last_day}
    return [DayStats(*row) for row in await _read(database, caller, lambda _sqlite: _days(), **values)]


async def conversations(database: Database, caller: Claims, day: date) -> list[ConversationStats]:
    """Return the conversations of a day with usage, latest first.

    Deleted conversations have an empty title.

    Raises:
        Unauthenticated: the user is deleted or inactive, or the token is revoked.
    """
    return [ConversationStats(*row) for row in await _read(database, caller, _conversations, day=day)]


async def conversations_of(session: AsyncSession, user_id: int, day: date) -> list[ConversationStats]:
    """Return the conversations of a user's day as `conversations`, without titles.

    What a user talked about is not for others to read.
    """
    statement = _conversations_of_user(is_sqlite(session))
    rows = await session.execute(statement, {"user_id": user_id, "day": day})
    return [ConversationStats(row[0], None, *row[1:]) for row in rows]


async def _read(database: Database, caller: Claims, statement_for: Any, **values: Any) -> list[Any]:
    async def work(session: AsyncSession) -> list[Any]:
        statement = statement_for(is_sqlite(session))
        return list(await session.execute(statement, {**sessions.parameters(caller), **values}))

    rows = await database.read(work)
    if not rows:
        raise Unauthenticated("This token is no longer valid. Log in again.")
    return [row for (has_usage, *row) in rows if has_usage]


_OF_CALLER = bindparam("user_id", type_=Integer)


def _of_caller(sums: Subquery) -> Select[*tuple[Any, ...]]:
    """Select the rows of `sums`; none if the caller's token is invalid.

    The first column is whether the row has usage: a valid caller without usage has one row without.
    """
    return (
        select(func.coalesce(sums.c.message_count, 0) > 0)
        .select_from(User)
        .outerjoin(sums, true())
        .where(User.id == _OF_CALLER, IS_ACTIVE, *sessions.STILL_VALID)
    )


@functools.cache
def _days() -> Select[*tuple[Any, ...]]:
    """Read the rollup, and count each day's conversations in the ledger's index."""
    within = (bindparam("first_day", type_=Date), bindparam("last_day", type_=Date))
    summed = [_total(name, getattr(Day, name)) for name in SUMMED]
    days_ = select(Day.usage_date, *summed).where(Day.user_id == _OF_CALLER, Day.usage_date.between(*within))
    sums = days_.group_by(Day.usage_date).subquery("days")
    talks = (
        select(Message.usage_date, Message.conversation_id)
        .where(Message.user_id == _OF_CALLER, Message.usage_date.between(*within))
        .where(Message.conversation_id.is_not(None))
        .distinct()
        .subquery("talks")
    )
    counts = select(talks.c.usage_date, func.count().label("talks")).group_by(talks.c.usage_date).subquery("counts")
    return (
        _of_caller(sums)
        .add_columns(sums.c.usage_date, func.coalesce(counts.c.talks, 0), *(sums.c[name] for name in SUMMED))
        .outerjoin(counts, counts.c.usage_date == sums.c.usage_date)
        .order_by(sums.c.usage_date.desc())
    )


@functools.cache
def _conversations(sqlite: bool) -> Select[*tuple[Any, ...]]:
    sums = _conversation_sums(sqlite)
    latest = type_coerce(sums.c.last_message_at, UtcDateTime)
    return (
        _of_caller(sums)
        .add_columns(sums.c.conversation_id, Conversation.title, Conversation.model_type, latest)
        .add_columns(*(sums.c[name] for name in SUMMED))
        .outerjoin(Conversation, and_(Conversation.id == sums.c.conversation_id, Conversation.user_id == _OF_CALLER))
        .order_by(*_latest_first(sums))
    )


@functools.cache
def _conversations_of_user(sqlite: bool) -> Select[*tuple[Any, ...]]:
    sums = _conversation_sums(sqlite)
    latest = type_coerce(sums.c.last_message_at, UtcDateTime)
    return (
        select(sums.c.conversation_id, Conversation.model_type, latest, *(sums.c[name] for name in SUMMED))
        .outerjoin(Conversation, and_(Conversation.id == sums.c.conversation_id, Conversation.user_id == _OF_CALLER))
        .where(sums.c.message_count > 0)
        .order_by(*_latest_first(sums))
    )


def _latest_first(sums: Subquery) -> tuple[ColumnElement[Any], ...]:
    return sums.c.last_message_at.desc().nulls_last(), sums.c.conversation_id


def _conversation_sums(sqlite: bool) -> Subquery:
    """Sum the ledger of a day: messages and adjustments."""
    day = bindparam("day", type_=Date)
    figures = [expression.label(name) for name, expression in rollups.figures_of(Message).items()]
    messages = select(Message.conversation_id, _instant(sqlite).label("last_message_at"), *figures)
    no_conversation = (sql_cast(null(), String), sql_cast(null(), UtcDateTime))
    adjustments = select(*no_conversation, *(getattr(Adjustment, name) for name in SUMMED))
    ledger = union_all(
        messages.where(Message.user_id == _OF_CALLER, Message.usage_date == day),
        adjustments.where(Adjustment.user_id == _OF_CALLER, Adjustment.usage_date == day),
    ).subquery("ledger")
    last = func.max(ledger.c.last_message_at).label("last_message_at")
    summed = [_total(name, ledger.c[name]) for name in SUMMED]
    return select(ledger.c.conversation_id, last, *summed).group_by(ledger.c.conversation_id).subquery("sums")


def _total(name: str, column: Any) -> ColumnElement[Any]:
    return rollups.total(name, column).label(name)


def _instant(sqlite: bool) -> ColumnElement[Any]:
    """Return `created_at` in a form that sorts, also of adopted SQLite rows."""
    if not sqlite:
        return Message.created_at.expression
    stored = type_coerce(Message.created_at, String)
    sorts = or_(stored.op("GLOB")(clock.SECONDS_GLOB), stored.op("GLOB")(clock.MICROSECONDS_GLOB))
    return case((sorts, stored), else_=func.foundation_instant(stored))
