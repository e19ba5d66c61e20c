"""Serve the caller's preferences."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.db.database import Session
from models import Preferences
from routers.http.dependencies import CallerDep, StateDep
from routers.http.problems import documented
from routers.http.requests import ExactRoute, StorableText, examples
from services.accounts import preferences, users

router = APIRouter(prefix="/preferences", tags=["accounts"], route_class=ExactRoute)

ShortText = Annotated[StorableText, Field(max_length=255)] | None


class PreferencesChange(BaseModel):
    """Preferences to change; those that are left out stay as they are."""

    model_config = examples({"nickname": "Ayu", "job": "nurse", "chatbot_preference": "Short answers."})

    nickname: ShortText = None
    job: ShortText = None
    chatbot_preference: Annotated[StorableText, Field(max_length=preferences.MAX_LENGTH)] | None = None


class PreferencesView(BaseModel):
    """The caller's preferences.

    `id` and the times are null until preferences are stored.
    """

    id: int | None = None
    user_id: int
    nickname: str | None = None
    job: str | None = None
    chatbot_preference: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


@router.get("", operation_id="get_preferences", responses=documented(401, 503))
async def get_preferences(caller: CallerDep, state: StateDep) -> PreferencesView:
    """Return the caller's preferences."""

    async def work(session: Session) -> PreferencesView:
        await users.require_role(session, caller)
        return _view(caller.user_id, await preferences.read(session, caller.user_id))

    return await state.database.read(work)


@router.put("", operation_id="change_preferences", responses=documented(401, 422, 503))
async def put_preferences(body: PreferencesChange, caller: CallerDep, state: StateDep) -> PreferencesView:
    """Change the caller's preferences.

    The model receives them before every chat; they count as input.
    """

    async def work(session: Session) -> PreferencesView:
        await users.require_role(session, caller)
        changed = body.model_dump(exclude_unset=True)
        return _view(caller.user_id, await preferences.store(session, caller.user_id, changed))

    return await state.database.transaction(work, repeatable=True)


def _view(user_id: int, found: Preferences | None) -> PreferencesView:
    return PreferencesView.model_validate(found or {"user_id": user_id}, from_attributes=True)
