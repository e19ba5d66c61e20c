"""Reading usage in detail: a month by its days, a day by its conversations, from the ledger's own index."""

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import money
from app.clock import Month
from models import Conversation, Message


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


_FIGURES: tuple[Any, ...] = (
    func.sum(Message.input_tokens),
    func.sum(func.coalesce(Message.output_tokens, 0)),
    func.coalesce(func.sum(Message.cost), money.ZERO),
    func.count(),
)


async def days(session: AsyncSession, user_id: int, month: Month) -> Sequence[DayStats]:
    """The days of a month with usage, newest first."""
    day: Any = Message.usage_date
    statement = (
        select(day, *_FIGURES, func.count(Message.conversation_id.distinct()))
        .where(Message.user_id == user_id, Message.usage_date.between(month.first_day, month.last_day))
        .group_by(Message.usage_date)
        .order_by(Message.usage_date.desc())
    )
    found: Sequence[Any] = (await session.execute(statement)).all()
    return [
        DayStats(day, int(input_tokens), int(output_tokens), cost, messages, talks)
        for day, input_tokens, output_tokens, cost, messages, talks in found
    ]


async def conversations(session: AsyncSession, user_id: int, day: date) -> Sequence[ConversationStats]:
    """The conversations of a day with usage, the latest first; those that were deleted have an empty title."""
    last_message_at: Any = func.max(Message.created_at)
    about: tuple[Any, ...] = (Message.conversation_id, Conversation.title, Conversation.model_type)
    statement = (
        select(*about, *_FIGURES, last_message_at)
        .select_from(Message)
        .outerjoin(Conversation, Conversation.id == Message.conversation_id)
        .where(Message.user_id == user_id, Message.usage_date == day)
        .group_by(*about)
        .order_by(last_message_at.desc(), Message.conversation_id)
    )
    found: Sequence[Any] = (await session.execute(statement)).all()
    return [
        ConversationStats(talk, title, kind, int(input_tokens), int(output_tokens), cost, messages, latest)
        for talk, title, kind, input_tokens, output_tokens, cost, messages, latest in found
    ]
