"""Serve usage in detail: a month by days, a day by conversations."""

import datetime
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from app.clock import Month
from app.db.database import Database
from app.errors import Unauthenticated
from app.security.tokens import Claims
from routers.http.dependencies import CallerDep, State, StateDep
from routers.http.problems import documented
from routers.http.requests import Digits, IsoDate
from services.accounts import users
from services.usage import breakdowns
from services.usage.breakdowns import ConversationStats, DayStats

router = APIRouter(prefix="/auth/token-stats", tags=["usage"])

T = TypeVar("T")


Day = Annotated[datetime.date, Path(examples=["2024-12-24"]), IsoDate]


class Figures(BaseModel):
    """Figures of usage."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    total_cost: float = Field(description="US dollars")
    message_count: int
    unpriced_count: int = Field(description="Messages whose price is unknown; they add nothing to `total_cost`.")
    estimated_count: int = Field(description="Messages whose tokens were estimated: the provider reported none.")


class DayView(Figures):
    """The usage of one day."""

    date: datetime.date
    conversation_count: int


class Days(BaseModel):
    """The days of a month with usage, newest first."""

    month: str = Field(examples=["2024-12"])
    daily_stats: list[DayView]
    total_days: int


class ConversationUsage(Figures):
    """The usage of one conversation (null: of none) on one day."""

    conversation_id: str | None
    conversation_title: str | None
    model_type: str | None
    last_message_at: datetime.datetime | None


class Conversations(BaseModel):
    """The conversations of a day with usage, the latest first."""

    date: datetime.date
    conversation_stats: list[ConversationUsage]
    total_conversations: int


@router.get("/monthly/{year}/{month}/daily", responses=documented(401, 422, 503))
async def get_usage_by_day(
    year: Annotated[int, Path(ge=1, le=9999, examples=[2024]), Digits],
    month: Annotated[int, Path(ge=1, le=12, examples=[12]), Digits],
    caller: CallerDep,
    state: StateDep,
) -> Days:
    """Show the caller's usage in a month, by day."""
    wanted = Month(year, month)
    found = await _read(state, caller, lambda database: breakdowns.days(database, caller, wanted))
    days = [DayView(**_figures(day)) for day in found]
    return Days(month=str(wanted), daily_stats=days, total_days=len(days))


@router.get("/daily/{date}/conversations", responses=documented(401, 422, 503))
async def get_usage_by_conversation(date: Day, caller: CallerDep, state: StateDep) -> Conversations:
    """Show the caller's usage on a day, by conversation."""
    found = await _read(state, caller, lambda database: breakdowns.conversations(database, caller, date))
    return conversations_of_day(date, found)


async def _read(state: State, caller: Claims, read: Callable[[Database], Awaitable[list[T]]]) -> list[T]:
    """Read on the replica, if any, after the primary checked the caller."""
    if state.replica is None:
        return await read(state.database)
    await state.database.read(lambda session: users.require_role(session, caller))
    try:
        return await read(state.replica)
    except Unauthenticated:  # the user or the token is newer than the replica
        return await read(state.database)


def conversations_of_day(date: datetime.date, found: Sequence[ConversationStats]) -> Conversations:
    """Render the conversations of a day."""
    stats = [ConversationUsage(**_figures(item)) for item in found]
    return Conversations(date=date, conversation_stats=stats, total_conversations=len(stats))


def _figures(row: DayStats | ConversationStats) -> dict[str, Any]:
    exact = {"total_tokens": row.input_tokens + row.output_tokens, "total_cost": float(row.total_cost)}
    return row._asdict() | exact
