"""Serve usage over any range of days, by day and by model.

For the caller, for a user that an admin selects, and for all users.
"""

import dataclasses
import datetime
from collections.abc import Callable, Coroutine, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app import clock
from app.clock import Month
from app.db.database import Session
from app.errors import InvalidRequest
from app.security.tokens import Claims
from routers.admin import UserId
from routers.http import csv_answers
from routers.http.csv_answers import CsvText, Format
from routers.http.dependencies import CallerDep, State, StateDep
from routers.http.problems import documented
from routers.http.requests import IsoDate
from routers.usage_breakdowns import Conversations, Day, Figures, conversations_of_day
from services.accounts import administration, users
from services.usage import breakdowns, ranges, rollups
from services.usage.ranges import DayRange
from services.usage.rollups import Sums

router = APIRouter()

MAX_FILLED_DAYS = 3_660
"""The most days of a range that is filled with zeros: ten years."""

_OWN: dict[str, Any] = {"tags": ["usage"], "responses": {**csv_answers.DOCUMENTED, **documented(401, 422, 503)}}
_OF_ALL: dict[str, Any] = {
    "tags": ["administration"],
    "responses": {**csv_answers.DOCUMENTED, **documented(401, 403, 422, 503)},
}
_OF_USER: dict[str, Any] = {**_OF_ALL, "responses": {**_OF_ALL["responses"], **documented(404)}}

_CONVERSATIONS: dict[str, Any] = {"tags": ["administration"], "responses": documented(401, 403, 404, 422, 503)}


class RangeQuery(BaseModel):
    """Which days, both ends included, and their presentation."""

    first: Annotated[datetime.date | None, IsoDate] = Field(
        None, alias="from", description="The first day of the month of `to` if left out."
    )
    last: Annotated[datetime.date | None, IsoDate] = Field(None, alias="to", description="Today if left out.")
    format: Format | None = Field(None, description="Without it, `Accept: text/csv` selects CSV.")


class DailyQuery(RangeQuery):
    """Which days, and whether those without usage are shown."""

    fill: bool = Field(False, description=f"Show days without usage as zeros, of at most {MAX_FILLED_DAYS} days.")


class RangeView(BaseModel):
    """A range of days of the server's time zone."""

    model_config = ConfigDict(validate_by_name=True)

    first: datetime.date = Field(alias="from")
    last: datetime.date = Field(alias="to")
    time_zone: str = Field(examples=["Asia/Jakarta"], description="It decides to which day a message belongs.")
    total: Figures


class DayUsage(Figures):
    """The usage of one day."""

    date: datetime.date


class DailyUsage(RangeView):
    """The days of a range, newest first."""

    daily_stats: list[DayUsage]
    total_days: int


class ModelFigures(Figures):
    """The usage of one model (null: of messages without one)."""

    model: str | None


class ModelUsage(RangeView):
    """The models used in a range, the most expensive first."""

    model_stats: list[ModelFigures]
    total_models: int


@router.get("/auth/token-stats/daily", response_model=DailyUsage, **_OWN)
async def get_daily_usage(
    query: Annotated[DailyQuery, Query()], request: Request, caller: CallerDep, state: StateDep
) -> Any:
    """Show the caller's usage over a range of days, by day."""
    return await _by_day(query, request, state, _own(caller))


@router.get("/auth/token-stats/models", response_model=ModelUsage, **_OWN)
async def get_model_usage(
    query: Annotated[RangeQuery, Query()], request: Request, caller: CallerDep, state: StateDep
) -> Any:
    """Show the caller's usage over a range of days, by model."""
    return await _by_model(query, request, state, _own(caller))


@router.get("/admin/users/{user_id}/token-stats/daily", response_model=DailyUsage, **_OF_USER)
async def get_daily_usage_of_user(
    user_id: UserId, query: Annotated[DailyQuery, Query()], request: Request, caller: CallerDep, state: StateDep
) -> Any:
    """Show one user's usage over a range of days, by day."""
    return await _by_day(query, request, state, _of_user(caller, user_id))


@router.get("/admin/users/{user_id}/token-stats/models", response_model=ModelUsage, **_OF_USER)
async def get_model_usage_of_user(
    user_id: UserId, query: Annotated[RangeQuery, Query()], request: Request, caller: CallerDep, state: StateDep
) -> Any:
    """Show one user's usage over a range of days, by model."""
    return await _by_model(query, request, state, _of_user(caller, user_id))


@router.get("/admin/users/{user_id}/token-stats/daily/{date}/conversations", **_CONVERSATIONS)
async def get_usage_by_conversation_of_user(
    user_id: UserId, date: Day, caller: CallerDep, state: StateDep
) -> Conversations:
    """Show one user's usage on a day, by conversation, without titles."""

    async def work(session: Session, _selected: int | None) -> Conversations:
        return conversations_of_day(date, await breakdowns.conversations_of(session, user_id, date))

    return await state.report(_of_user(caller, user_id), work)


@router.get("/admin/token-stats/daily", response_model=DailyUsage, **_OF_ALL)
async def get_daily_usage_of_all_users(
    query: Annotated[DailyQuery, Query()], request: Request, caller: CallerDep, state: StateDep
) -> Any:
    """Show all users' usage over a range of days, by day."""
    return await _by_day(query, request, state, _of_all(caller))


@router.get("/admin/token-stats/models", response_model=ModelUsage, **_OF_ALL)
async def get_model_usage_of_all_users(
    query: Annotated[RangeQuery, Query()], request: Request, caller: CallerDep, state: StateDep
) -> Any:
    """Show all users' usage over a range of days, by model."""
    return await _by_model(query, request, state, _of_all(caller))


Selection = Callable[[Session], Coroutine[Any, Any, int | None]]
"""Checks the caller; returns whose usage is read: a user's, or everyone's (None)."""


def _own(caller: Claims) -> Selection:
    async def select(session: Session) -> int:
        await users.require_role(session, caller)
        return caller.user_id

    return select


def _of_user(caller: Claims, user_id: int) -> Selection:
    async def select(session: Session) -> int:
        await users.require_role(session, caller, "admin")
        return (await administration.account(session, user_id)).id

    return select


def _of_all(caller: Claims) -> Selection:
    async def select(session: Session) -> None:
        await users.require_role(session, caller, "admin")

    return select


async def _by_day(query: DailyQuery, request: Request, state: State, select: Selection) -> DailyUsage | Response:
    within = _range(query, state)
    if query.fill and within.length > MAX_FILLED_DAYS:
        raise InvalidRequest({"fill": [f"The range has more than {MAX_FILLED_DAYS} days."]})

    found = await state.report(select, lambda session, user_id: ranges.by_day(session, within, user_id))
    if query.fill:
        found = {day: found.get(day, Sums()) for day in within.newest_first()}
    if csv_answers.is_wanted(request, query.format):
        return _as_csv("date", within, found.items())
    stats = [DayUsage(date=day, **_figures(sums)) for day, sums in found.items()]
    return DailyUsage(**_in_range(within, state, found.values()), daily_stats=stats, total_days=len(stats))


async def _by_model(query: RangeQuery, request: Request, state: State, select: Selection) -> ModelUsage | Response:
    within = _range(query, state)

    found = await state.report(select, lambda session, user_id: ranges.by_model(session, within, user_id))
    if csv_answers.is_wanted(request, query.format):
        return _as_csv("model", within, found.items())
    stats = [ModelFigures(model=model or None, **_figures(sums)) for model, sums in found.items()]
    return ModelUsage(**_in_range(within, state, found.values()), model_stats=stats, total_models=len(stats))


def _range(query: RangeQuery, state: State) -> DayRange:
    last = query.last or clock.usage_date(clock.now(), state.settings.usage_timezone)
    first = query.first or Month.of(last).first_day
    if first > last:
        raise InvalidRequest({"from": [f"It must not be after the last day, {last}."]})
    return DayRange(first, last)


def _in_range(within: DayRange, state: State, sums: Iterable[Sums]) -> dict[str, Any]:
    total = Figures(**_figures(ranges.added(sums)))
    return {"first": within.first, "last": within.last, "time_zone": state.settings.usage_timezone.key, "total": total}


def _figures(sums: Sums) -> dict[str, Any]:
    exact = {"total_tokens": sums.total_tokens, "total_cost": float(sums.total_cost)}
    return dataclasses.asdict(sums) | exact


def _as_csv(key: str, within: DayRange, found: Iterable[tuple[Any, Sums]]) -> Response:
    text = CsvText(key, *rollups.FIGURES)
    for value, sums in found:
        text.add((value, *(getattr(sums, name) for name in rollups.FIGURES)))
    return text.answer(f"usage-by-{key}-{within.first}-{within.last}")
