"""A chat turn: begun in one transaction, answered with none open, settled and counted in another."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.errors import NotFound
from models import Conversation, Message
from services import pricing, token_usage
from services.upstream import Answer, Prompt

MAX_HISTORY = 50
"""So many of the last messages of a conversation are sent to the model."""

MAX_TITLE = 80
MODEL_TYPE = "Standard"


@dataclass(frozen=True)
class Turn:
    """A turn that has begun: its pending message, and what the model is to be asked."""

    conversation_id: str
    message_id: int
    prompts: Sequence[Prompt]


async def begin(session: AsyncSession, user_id: int, text: str, conversation_id: str | None, zone: tzinfo) -> Turn:
    """Stores the user's message and a pending answer.

    Raises:
        NotFound: the conversation is not there, deleted, or someone else's.
    """
    now = clock.now()
    if conversation_id is None:
        conversation_id = await _new_conversation(session, user_id, text)
        history: list[Prompt] = []
    else:
        await _touch(session, user_id, conversation_id)
        history = await _history(session, conversation_id)
    entry = token_usage.Entry(
        user_id=user_id, role="user", created_at=now, conversation_id=conversation_id, content=text
    )
    pending = token_usage.Entry(
        user_id=user_id, role="assistant", created_at=now, conversation_id=conversation_id, status="pending"
    )
    _, message_id = await token_usage.record_all(session, [entry, pending], zone)
    if message_id is None:
        raise RuntimeError("a message without an idempotency key was not stored")
    return Turn(conversation_id, message_id, [*history, {"role": "user", "content": text}])


async def settle(session: AsyncSession, turn: Turn, answer: Answer, api_url: str | None, zone: tzinfo) -> Message:
    """Settles and counts the pending message exactly once, whatever came of asking the model, and returns it."""
    usage = None
    if answer.tokens is not None:
        counts = answer.tokens
        created_at = await session.scalar(select(Message.created_at).where(Message.id == turn.message_id))
        price = pricing.price(
            answer.model,
            input_tokens=counts.input_tokens,
            output_tokens=counts.output_tokens,
            cached_input_tokens=counts.cached_input_tokens,
            at=created_at or clock.now(),
            api_url=api_url,
        )
        usage = token_usage.Usage(
            input_tokens=counts.input_tokens,
            output_tokens=counts.output_tokens,
            cached_input_tokens=counts.cached_input_tokens,
            cost=price.cost,
            price_source=price.source,
            usage_estimated=counts.estimated,
        )
    settlement = token_usage.Settlement(
        status="failed" if answer.error else "complete", content=answer.content, model=answer.model, usage=usage
    )
    await token_usage.settle(session, turn.message_id, settlement, zone)
    message = await session.scalar(select(Message).where(Message.id == turn.message_id))
    if message is None:
        raise NotFound("The conversation was deleted meanwhile.")
    return message


async def _new_conversation(session: AsyncSession, user_id: int, text: str) -> str:
    conversation_id = str(uuid.uuid4())
    now = clock.now()
    await session.execute(
        insert(Conversation).values(
            id=conversation_id,
            user_id=user_id,
            title=" ".join(text.split())[:MAX_TITLE],
            model_type=MODEL_TYPE,
            created_at=now,
            updated_at=now,
        )
    )
    return conversation_id


async def _touch(session: AsyncSession, user_id: int, conversation_id: str) -> None:
    touched = await session.scalar(
        update(Conversation)
        .where(Conversation.id == conversation_id, Conversation.user_id == user_id, Conversation.deleted_at.is_(None))
        .values(updated_at=clock.now())
        .returning(Conversation.id)
    )
    if touched is None:
        raise NotFound("There is no such conversation.")


async def _history(session: AsyncSession, conversation_id: str) -> list[Prompt]:
    rows = await session.execute(
        select(Message.role, Message.content)
        .where(
            Message.conversation_id == conversation_id,
            Message.content.is_not(None),
            Message.content != "",
            (Message.status == "complete") | Message.status.is_(None),
        )
        .order_by(Message.id.desc())
        .limit(MAX_HISTORY)
    )
    return [{"role": row.role, "content": row.content} for row in reversed(rows.all())]
