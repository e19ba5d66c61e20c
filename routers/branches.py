"""Edited questions and branches over HTTP."""

import itertools
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from app.db.database import Session
from app.errors import BlankMessage
from app.security.tokens import Claims
from routers import chat, messages
from routers.chat import IdempotencyKey, MessageId
from routers.conversations import ConversationId
from routers.http.answers import Done
from routers.http.dependencies import CallerDep, State, StateDep
from routers.http.problems import documented
from routers.http.requests import ExactRoute, StorableText, examples, largest_body
from routers.messages import ConversationMessage
from services.accounts import users
from services.chat import branches, model_categories, requested_models
from services.chat.branches import Branch, Edited
from services.chat.turns import Answered, Question, Turn

router = APIRouter(tags=["conversations"], route_class=ExactRoute)


class EditRequest(BaseModel):
    """The new text of a question."""

    model_config = examples({"content": "What is a token?"}) | ConfigDict(extra="forbid")

    content: Annotated[StorableText, Field(max_length=100_000)]
    model: Annotated[StorableText, Field(min_length=1, max_length=255)] | None = Field(
        None,
        description="As in `POST /chat`; without it, the model that the question had named, or else the"
        " `model_type` of the conversation decides.",
    )


class EditAnswer(BaseModel):
    """The branch that an edited question began, and the model's answer there."""

    message_id: int | None = Field(description="The edited question in the branch")
    new_branch_id: str = Field(description="The same as `conversation_id`")
    conversation_id: str = Field(description="The branch: a conversation of its own")
    regenerated_messages: list[ConversationMessage]


class BranchView(BaseModel):
    """A conversation among its branches."""

    branch_id: str = Field(description="The conversation's id")
    root_message_id: int = Field(description="The message that was edited; 0 of a conversation that is no branch")
    is_active: bool = Field(description="Whether it is the requested conversation")
    created_at: datetime | None
    message_count: int


class BranchList(BaseModel):
    """A conversation, its parent, and the branches of both."""

    conversation_id: str
    branches: list[BranchView]


@router.put(
    "/messages/{message_id}",
    operation_id="edit_message",
    responses=documented(400, 401, 404, 409, 410, 422, 429, 502, 503, 504),
)
@largest_body(lambda _: chat.LARGEST_BODY_BYTES)
async def put_message(
    message_id: MessageId,
    body: EditRequest,
    caller: CallerDep,
    state: StateDep,
    request: Request,
    idempotency_key: IdempotencyKey = None,
) -> EditAnswer:
    """Ask an edited question in a new branch of its conversation.

    Only the new answer is counted. The branch begins with copies of the messages before the question. It stays if the
    model fails, as a conversation with the edited question: continue it with `POST /chat`, or delete it.
    """
    if not body.content.strip():
        raise BlankMessage("The question is empty.")
    begun = await _begin(state, caller, message_id, body, idempotency_key)
    answered = await chat.whole(state, begun, request)
    return EditAnswer(
        message_id=begun.user_message_id,
        new_branch_id=answered.conversation_id,
        conversation_id=answered.conversation_id,
        regenerated_messages=[messages.view_in_conversation(answered.message, has_branches=False)],
    )


@router.get(
    "/conversations/{conversation_id}/branches",
    operation_id="list_branches",
    responses=documented(401, 404, 422, 503),
)
async def get_branches(conversation_id: ConversationId, caller: CallerDep, state: StateDep) -> BranchList:
    """List a conversation with its branches.

    Of a branch also its parent, and the other branches of that one. At most 1,000, the newest ones.
    """

    async def work(session: Session) -> list[BranchView]:
        await users.require_role(session, caller)
        found = await branches.listed(session, caller.user_id, conversation_id)
        return [_view(branch, conversation_id) for branch in found]

    return BranchList(conversation_id=conversation_id, branches=await state.database.read(work))


@router.post(
    "/conversations/{conversation_id}/branches/{branch_id}/activate",
    operation_id="activate_branch",
    responses=documented(401, 404, 422, 503),
)
async def post_activate(
    conversation_id: ConversationId, branch_id: ConversationId, caller: CallerDep, state: StateDep
) -> Done:
    """Tell whether a branch belongs to a conversation.

    Nothing is stored: a branch is read by its own id.
    """

    async def work(session: Session) -> None:
        await users.require_role(session, caller)
        await branches.check_related(session, caller.user_id, conversation_id, branch_id)

    await state.database.read(work)
    return Done(message="The branch is active.")


def _view(branch: Branch, requested: str) -> BranchView:
    return BranchView(
        branch_id=branch.id,
        root_message_id=branch.edited_message_id or 0,
        is_active=branch.id == requested,
        created_at=branch.created_at,
        message_count=branch.message_count,
    )


async def _begin(
    state: State, caller: Claims, message_id: int, body: EditRequest, idempotency_key: str | None
) -> Turn | Answered:
    async def question(session: Session) -> Question:
        edited = await branches.find(session, caller.user_id, message_id)
        model = await _model(session, state, caller, body, edited)
        named = bool(body.model or edited.model)
        return Question(
            caller.user_id, body.content, model, idempotency_key=idempotency_key, edited=edited, is_named=named
        )

    return await chat.begin(state, caller, question)


async def _model(session: Session, state: State, caller: Claims, body: EditRequest, edited: Edited) -> str:
    """Return the requested model, the question's, or that of its category.

    The category is that of the conversation: one of the user's own, by its id or its name, or a usual one.
    """
    if body.model is not None:
        return chat.model_of(state, body.model, None)
    if edited.model is not None:
        return state.upstream.model_for(edited.model)
    own = await model_categories.listed(session, caller.user_id) or ()
    by_id = (category.model_id for category in own if category.id == edited.category_id)
    by_name = (category.model_id for category in own if category.display_name == edited.model_type)
    model_id = next(itertools.chain(by_id, by_name), None)  # the name may have changed
    usual = edited.model_type if edited.model_type in requested_models.CATEGORIES else None
    return chat.model_of(state, None if model_id else usual, model_id)
