"""Serve admins: manage users, and report their usage."""

import asyncio
import logging
from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response, status
from pydantic import AfterValidator, BaseModel, Field

from app.clock import Month
from app.db.database import Session
from app.security.tokens import Claims
from routers.accounts import AccountView
from routers.http import csv_answers, reset_page
from routers.http.csv_answers import CsvText, Format
from routers.http.dependencies import CallerDep, State, StateDep
from routers.http.problems import documented
from routers.http.requests import ExactRoute, StorableText
from services.accounts import administration, password_resets, users
from services.accounts.administration import UserUsage, Wanted
from services.chat import images

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/admin", tags=["administration"], route_class=ExactRoute)

UserId = Annotated[int, Path(ge=1, le=2**31 - 1)]


class UserView(AccountView):
    """A user."""

    created_at: datetime | None


class UserPage(BaseModel):
    """A page of users, ordered by id; `after` selects the next."""

    users: list[UserView]
    has_more: bool


class PasswordResetView(BaseModel):
    """A token for its user; the server does not show it again."""

    token: str
    expires_at: datetime
    path: str = Field(
        description="With the server's address before it: a link to the page that asks for the new password."
    )


class UserPageQuery(BaseModel):
    """Which page of users."""

    after: int = Field(0, ge=0, le=2**31 - 1, description="Only users with a greater id.")
    limit: int = Field(100, ge=1, le=1000)


class UserUsageView(BaseModel):
    """One user's usage in the month."""

    user_id: int
    username: str
    input_tokens: int
    output_tokens: int
    total_tokens: int
    total_cost: float = Field(description="US dollars; exact in CSV")
    message_count: int
    unpriced_count: int = Field(description="Messages whose price is unknown; they add nothing to `total_cost`.")
    estimated_count: int = Field(description="Messages whose tokens were estimated: the provider reported none.")


class UsagePage(BaseModel):
    """A page of users with their usage in a month."""

    month: str
    users: list[UserUsageView]
    page: int
    limit: int
    total_users: int
    has_more: bool


class UsageQuery(BaseModel):
    """Which month, and its presentation."""

    month: Annotated[str, AfterValidator(lambda value: str(Month.parse(value)))] = Field(examples=["2024-12"])
    search: Annotated[StorableText, Field(max_length=255)] = Field("", description="Part of the username.")
    with_usage: bool = Field(True, description="Only users with usage in the month.")
    sort: administration.Sort = "total_cost"
    order: Literal["desc", "asc"] = "desc"
    page: int = Field(1, ge=1, le=1_000_000)
    limit: int = Field(100, ge=1, le=1000)
    format: Format | None = Field(
        None, description="`csv` holds all users and ignores the page. Without it, `Accept: text/csv` selects CSV."
    )

    @property
    def wanted(self) -> Wanted:
        """Convert the query to the service's own type."""
        return Wanted(Month.parse(self.month), self.sort, self.order == "desc", self.search, self.with_usage)


@router.get("/users", responses=documented(401, 403, 422, 503))
async def list_users(query: Annotated[UserPageQuery, Query()], caller: CallerDep, state: StateDep) -> UserPage:
    """List all users, page by page."""

    async def work(session: Session) -> UserPage:
        await users.require_role(session, caller, "admin")
        found = await administration.users(session, query.after, query.limit + 1)
        views = [UserView.model_validate(user, from_attributes=True) for user in found[: query.limit]]
        return UserPage(users=views, has_more=len(found) > query.limit)

    return await state.database.read(work)


@router.post("/users/{user_id}/deactivate", responses=documented(401, 403, 404, 409, 422, 503))
async def deactivate_user(user_id: UserId, caller: CallerDep, state: StateDep) -> AccountView:
    """Deactivate a user: every login ends, and new ones are refused."""
    return await _set_active(state, caller, user_id, active=False)


@router.post("/users/{user_id}/activate", responses=documented(401, 403, 404, 422, 503))
async def activate_user(user_id: UserId, caller: CallerDep, state: StateDep) -> AccountView:
    """Activate a user, who can then log in again."""
    return await _set_active(state, caller, user_id, active=True)


async def _set_active(state: State, caller: Claims, user_id: int, *, active: bool) -> AccountView:
    async def work(session: Session) -> users.Account:
        if active:
            await users.require_role(session, caller, "admin")
        else:
            await administration.check_may_change(session, caller, user_id)
        return await administration.set_active(session, user_id, active)

    account = await state.database.transaction(work, repeatable=True)
    logger.info("admin %d made user %d %s", caller.user_id, user_id, "active" if active else "inactive")
    return AccountView.model_validate(account, from_attributes=True)


@router.post(
    "/users/{user_id}/reset-password",
    status_code=status.HTTP_201_CREATED,
    responses=documented(401, 403, 404, 409, 422, 503),
)
async def issue_password_reset(user_id: UserId, caller: CallerDep, state: StateDep) -> PasswordResetView:
    """Issue a one-time password reset token, which replaces an earlier one."""

    async def work(session: Session) -> password_resets.Issued:
        await users.require_role(session, caller, "admin")
        administration.refuse_oneself(caller, user_id)
        return await password_resets.issue(session, user_id)

    issued = await state.database.transaction(work, repeatable=True)
    logger.info("admin %d issued a password reset for user %d", caller.user_id, user_id)
    return PasswordResetView(token=issued.token, expires_at=issued.expires_at, path=reset_page.link(issued.token))


@router.delete(
    "/users/{user_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=documented(401, 403, 404, 409, 422, 503),
)
async def delete_user(user_id: UserId, caller: CallerDep, state: StateDep) -> None:
    """Delete a user for good, with all messages and all usage."""

    async def work(session: Session) -> Collection[str]:
        await administration.check_may_change(session, caller, user_id)
        urls = await images.urls_of_user(session, user_id)
        await users.delete(session, user_id)
        return urls

    urls = await state.database.transaction(work)
    await asyncio.to_thread(images.delete_files, state.settings.uploads_dir, urls)
    logger.info("admin %d deleted user %d", caller.user_id, user_id)


@router.get(
    "/usage",
    response_model=UsagePage,
    responses={**csv_answers.DOCUMENTED, **documented(401, 403, 422, 503)},
)
async def get_usage_by_user(
    query: Annotated[UsageQuery, Query()], request: Request, caller: CallerDep, state: StateDep
) -> Any:
    """Show each user's usage in a month."""

    async def check(session: Session) -> None:
        await users.require_role(session, caller, "admin")

    async def work(session: Session, _checked: None) -> UsagePage | Response:
        return await (_as_csv if csv_answers.is_wanted(request, query.format) else _as_page)(session, query)

    return await state.report(check, work)


async def _as_page(session: Session, query: UsageQuery) -> UsagePage:
    total = await administration.users_selected(session, query.wanted)
    found = await administration.usage(session, query.wanted, (query.page - 1) * query.limit, query.limit)
    return UsagePage(
        month=query.month,
        users=[UserUsageView(**user._asdict()) for user in found],
        page=query.page,
        limit=query.limit,
        total_users=total,
        has_more=query.page * query.limit < total,
    )


async def _as_csv(session: Session, query: UsageQuery) -> Response:
    text = CsvText("month", *UserUsage._fields)
    async for user in administration.usage_of_all(session, query.wanted):
        text.add((query.month, *user))
    return text.answer(f"usage-{query.month}")
