"""Reading usage in detail: a month by its days, a day by its conversations, from rollups of their own."""

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.clock import Month
from models import Conversation, ConversationDailyTokenUsage, UserDailyTokenUsage


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


async def days(session: AsyncSession, user_id: int, month: Month) -> Sequence[DayStats]:
    """The days of a month with usage, newest first."""
    table = UserDailyTokenUsage
    statement = (
        select(
            table.usage_date,
            table.input_tokens,
            table.output_tokens,
            table.total_cost,
            table.message_count,
            table.conversation_count,
        )
        .where(
            table.user_id == user_id,
            table.usage_date.between(month.first_day, month.last_day),
            table.message_count > 0,
        )
        .order_by(table.usage_date.desc())
    )
    return [DayStats(*row) for row in await session.execute(statement)]


async def conversations(session: AsyncSession, user_id: int, day: date) -> Sequence[ConversationStats]:
    """The conversations of a day with usage, the latest first; those that were deleted have an empty title."""
    table = ConversationDailyTokenUsage
    statement = (
        select(
            func.nullif(table.conversation_id, ""),
            Conversation.title,
            Conversation.model_type,
            table.input_tokens,
            table.output_tokens,
            table.total_cost,
            table.message_count,
            table.last_message_at,
        )
        .outerjoin(Conversation, Conversation.id == table.conversation_id)
        .where(table.user_id == user_id, table.usage_date == day, table.message_count > 0)
        .order_by(table.last_message_at.desc(), table.conversation_id)
    )
    return [ConversationStats(*row) for row in await session.execute(statement)]
