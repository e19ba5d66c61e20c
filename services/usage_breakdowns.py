"""Reading usage in detail: a month by its days, a day by its conversations, from rollups of their own."""

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Date, Select, SQLColumnExpression, and_, bindparam, func, select

from app.clock import Month
from app.database import Database
from app.errors import Unauthenticated
from app.single_reads import Rows
from app.tokens import Claims
from models import Conversation, ConversationDailyTokenUsage, User, UserDailyTokenUsage
from models.users import IS_ACTIVE
from services import sessions


class DayStats(NamedTuple):
    """One day of one user."""

    date: date
    input_tokens: int
    output_tokens: int
    total_cost: Decimal
    message_count: int
    conversation_count: int


class ConversationStats(NamedTuple):
    """One conversation on one day; without an id what was used outside of any."""

    conversation_id: str | None
    conversation_title: str | None
    model_type: str | None
    input_tokens: int
    output_tokens: int
    total_cost: Decimal
    message_count: int
    last_message_at: datetime | None


async def days(database: Database, caller: Claims, month: Month) -> list[DayStats]:
    """The days of a month with usage, newest first.

    Raises:
        Unauthenticated: the user is gone or not active, or the token was revoked.
    """
    values = {"first_day": month.first_day, "last_day": month.last_day}
    return [DayStats(*row) for row in await _fetch(database, caller, _DAYS, **values)]


async def conversations(database: Database, caller: Claims, day: date) -> list[ConversationStats]:
    """The conversations of a day with usage, the latest first; those that were deleted have an empty title.

    Raises:
        Unauthenticated: the user is gone or not active, or the token was revoked.
    """
    return [ConversationStats(*row) for row in await _fetch(database, caller, _CONVERSATIONS, day=day)]


async def _fetch(database: Database, caller: Claims, statement: Select[*tuple[Any, ...]], **values: Any) -> Rows:
    rows = await database.fetch(statement, **sessions.parameters(caller), **values)
    if not rows:
        raise Unauthenticated("This token is not taken any more: log in again.")
    return [row for (there, *row) in rows if there is not None]


def _of_caller(
    table: type[UserDailyTokenUsage | ConversationDailyTokenUsage],
    columns: Sequence[SQLColumnExpression[Any]],
    *wanted: ColumnElement[bool],
) -> Select[*tuple[Any, ...]]:
    """The rows of a rollup that have usage, each behind its `user_id`, which is null where there is no such row.

    No row at all where the caller's token is not taken any more.
    """
    used = and_(table.user_id == User.id, table.message_count > 0, *wanted)
    return (
        select(table.user_id, *columns)
        .select_from(User)
        .outerjoin(table, used)
        .where(User.id == bindparam("user_id"), IS_ACTIVE, *sessions.STILL_VALID)
    )


_DAYS = _of_caller(
    UserDailyTokenUsage,
    [
        UserDailyTokenUsage.usage_date,
        UserDailyTokenUsage.input_tokens,
        UserDailyTokenUsage.output_tokens,
        UserDailyTokenUsage.total_cost,
        UserDailyTokenUsage.message_count,
        UserDailyTokenUsage.conversation_count,
    ],
    UserDailyTokenUsage.usage_date.between(bindparam("first_day", type_=Date), bindparam("last_day", type_=Date)),
).order_by(UserDailyTokenUsage.usage_date.desc())
_CONVERSATIONS = (
    _of_caller(
        ConversationDailyTokenUsage,
        [
            func.nullif(ConversationDailyTokenUsage.conversation_id, ""),
            Conversation.title,
            Conversation.model_type,
            ConversationDailyTokenUsage.input_tokens,
            ConversationDailyTokenUsage.output_tokens,
            ConversationDailyTokenUsage.total_cost,
            ConversationDailyTokenUsage.message_count,
            ConversationDailyTokenUsage.last_message_at,
        ],
        ConversationDailyTokenUsage.usage_date == bindparam("day", type_=Date),
    )
    .outerjoin(Conversation, Conversation.id == ConversationDailyTokenUsage.conversation_id)
    .order_by(ConversationDailyTokenUsage.last_message_at.desc(), ConversationDailyTokenUsage.conversation_id)
)
