"""Chat over HTTP."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app import money
from models import Message
from routers.dependencies import StateDep, UserId
from routers.problems import documented
from routers.requests import ExactRoute, StorableText
from services import accounts, chat

router = APIRouter(tags=["chat"], route_class=ExactRoute)


class ChatRequest(BaseModel):
    """A message to the model."""

    message: Annotated[StorableText, Field(min_length=1, max_length=100_000)]
    conversation_id: Annotated[StorableText, Field(min_length=1, max_length=255)] | None = None
    model: Annotated[StorableText, Field(min_length=1, max_length=255)] | None = None
    stream: bool = True


class MessageView(BaseModel):
    """A message; tokens and cost are null where it has no usage, cost also where no price is known."""

    id: int
    role: str
    content: str | None
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None
    total_tokens: int | None
    cost: str | None = Field(description="US dollars, as a decimal", examples=["0.0004425"])
    status: str
    created_at: datetime | None


class ChatAnswer(BaseModel):
    """The model's answer, and where it stands."""

    conversation_id: str
    message: MessageView


@router.post("/chat", responses=documented(401, 404, 422, 502, 503, 504))
async def post_chat(body: ChatRequest, user_id: UserId, state: StateDep) -> ChatAnswer:
    """Sends a message to the model and answers with what it says, once it is stored and counted."""
    zone = state.settings.usage_timezone
    model = state.upstream.model_for(body.model)
    async with state.database.sessions.begin() as session:
        await accounts.require_role(session, user_id)
        turn = await chat.begin(session, user_id, body.message, body.conversation_id, zone)
    answer = await state.upstream.complete(turn.prompts, model)
    async with state.database.sessions.begin() as session:
        message = await chat.settle(session, turn, answer, state.upstream.api_url, zone)
    if answer.error is not None:
        raise answer.error
    return ChatAnswer(conversation_id=turn.conversation_id, message=view(message))


def view(message: Message) -> MessageView:
    """A stored message as callers see it."""
    total = None if message.input_tokens is None else message.input_tokens + (message.output_tokens or 0)
    return MessageView(
        id=message.id,
        role=message.role,
        content=message.content,
        model=message.model,
        input_tokens=message.input_tokens,
        output_tokens=message.output_tokens,
        cached_input_tokens=message.cached_input_tokens,
        total_tokens=total,
        cost=None if message.cost is None else money.as_text(message.cost),
        status=message.status or "complete",
        created_at=message.created_at,
    )
