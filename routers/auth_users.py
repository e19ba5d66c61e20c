"""Serve admins the users under the earlier backend's addresses; `admin` serves more."""

import logging
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from app.db.database import Session
from routers import admin
from routers.accounts import AccountView
from routers.admin import UserId
from routers.http.answers import Done
from routers.http.dependencies import CallerDep, StateDep
from routers.http.problems import documented
from routers.http.requests import ExactRoute, examples
from routers.logins import NewPassword, check_new_password
from services import earlier_backend
from services.accounts import administration, users
from services.accounts.users import Account

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/auth/users", tags=["administration"], route_class=ExactRoute)


class UsersQuery(BaseModel):
    """Which users."""

    skip: int = Field(0, ge=0, le=2**31 - 1)
    limit: int = Field(100, ge=1, le=1000)


class UserChange(BaseModel):
    """What to change of a user."""

    model_config = examples({"role": "admin"}) | ConfigDict(extra="forbid")

    role: Literal["user", "admin"] | None = None
    password: NewPassword | None = None


@router.get("", operation_id="list_accounts", responses=documented(401, 403, 422, 503))
async def get_users(query: Annotated[UsersQuery, Query()], caller: CallerDep, state: StateDep) -> list[AccountView]:
    """List all users, ordered by id."""

    async def work(session: Session) -> list[AccountView]:
        await users.require_role(session, caller, "admin")
        found = await administration.users(session, 0, query.limit, query.skip)
        return [AccountView.model_validate(user, from_attributes=True) for user in found]

    return await state.database.read(work)


@router.put("/{user_id}", operation_id="change_account", responses=documented(401, 403, 404, 409, 422, 503))
async def put_user(user_id: UserId, body: UserChange, caller: CallerDep, state: StateDep) -> AccountView:
    """Change the role or password of a user.

    A new password ends every login of the user.
    """

    async def look(session: Session) -> Account:
        await users.require_role(session, caller, "admin")
        administration.refuse_oneself(caller, user_id)
        return await administration.account(session, user_id)

    found = await state.database.read(look)
    hashed = None
    if body.password is not None:
        check_new_password("password", body.password, found.username, found.email)
        hashed = await earlier_backend.hash_password(state.database, body.password)

    async def work(session: Session) -> Account:
        await administration.check_may_change(session, caller, user_id)
        return await administration.change(session, user_id, body.role, hashed)

    changed = await state.database.transaction(work, repeatable=True)
    logger.info("admin %d changed user %d: %s", caller.user_id, user_id, ", ".join(sorted(body.model_fields_set)))
    return AccountView.model_validate(changed, from_attributes=True)


@router.delete("/{user_id}", operation_id="delete_account", responses=documented(401, 403, 404, 409, 422, 503))
async def delete_user(user_id: UserId, caller: CallerDep, state: StateDep) -> Done:
    """Delete a user for good, with all messages and all usage."""
    await admin.delete_user(user_id, caller, state)
    return Done(message="The user is deleted.")
