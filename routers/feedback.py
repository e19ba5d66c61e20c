"""Serve the caller's feedback on messages."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from app.db.database import Session
from routers.http.answers import Done
from routers.http.dependencies import CallerDep, StateDep
from routers.http.problems import documented
from routers.http.requests import Digits, ExactRoute, StorableText, examples
from services.accounts import users
from services.chat import feedback

router = APIRouter(prefix="/feedback", tags=["conversations"], route_class=ExactRoute)

_MAX_ID = 2**63 - 1
Id = Annotated[int, Path(ge=1, le=_MAX_ID), Digits]


class FeedbackChange(BaseModel):
    """Whether the caller likes a message, and why."""

    model_config = examples({"message_id": 2, "feedback_type": "like", "description": "Clear."})

    message_id: Annotated[int, Field(strict=True, ge=1, le=_MAX_ID)]
    feedback_type: feedback.Kind
    description: Annotated[StorableText, Field(max_length=10_000)] | None = None


class FeedbackView(BaseModel):
    """The caller's feedback on a message."""

    id: int
    message_id: int
    user_id: int
    feedback_type: str | None
    description: str | None
    created_at: datetime | None


@router.post("", operation_id="give_feedback", responses=documented(401, 404, 422, 503))
async def post_feedback(body: FeedbackChange, caller: CallerDep, state: StateDep) -> FeedbackView:
    """Store feedback on a message of the caller's own conversations.

    It replaces earlier feedback of the caller.
    """

    async def work(session: Session) -> FeedbackView:
        await users.require_role(session, caller)
        wanted = body.message_id, body.feedback_type, body.description
        stored = await feedback.store(session, caller.user_id, *wanted)
        return FeedbackView.model_validate(stored, from_attributes=True)

    return await state.database.transaction(work, repeatable=True)


@router.get("/message/{message_id}", operation_id="list_feedback", responses=documented(401, 404, 422, 503))
async def get_feedback(message_id: Id, caller: CallerDep, state: StateDep) -> list[FeedbackView]:
    """Return the caller's feedback on a message: none, or one."""

    async def work(session: Session) -> list[FeedbackView]:
        await users.require_role(session, caller)
        found = await feedback.of_message(session, caller.user_id, message_id)
        return [FeedbackView.model_validate(each, from_attributes=True) for each in found]

    return await state.database.read(work)


@router.delete("/{feedback_id}", operation_id="delete_feedback", responses=documented(401, 404, 422, 503))
async def delete_feedback(feedback_id: Id, caller: CallerDep, state: StateDep) -> Done:
    """Delete the caller's feedback."""

    async def work(session: Session) -> None:
        await users.require_role(session, caller)
        await feedback.remove(session, caller.user_id, feedback_id)

    await state.database.transaction(work)
    return Done(message="The feedback is deleted.")
