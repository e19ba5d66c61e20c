"""Settle a turn in ever simpler ways.

No message stays pending, and none delays the others.
"""

import logging
from collections.abc import Awaitable, Callable
from datetime import tzinfo
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock, metrics
from app.db import failures
from app.db.database import Database
from models import Message
from services.chat import conversations, history, tokenizer
from services.chat.leases import PendingTurn
from services.chat.tokenizer import TokenCounts
from services.usage import token_usage

logger = logging.getLogger(__name__)


async def settle(
    opened: Database,
    turn: PendingTurn,
    zone: tzinfo,
    normally: Callable[[], Awaitable[object]],
    tokens: Callable[[], Awaitable[TokenCounts | None]],
    content: str = "",
) -> bool:
    """Settle a turn in the first of three ways that succeeds.

    The ways are: normally; as failed, with tokens but without a price; as failed and uncounted. A way that fails is
    logged with the id of the message and counted in `/metrics`.

    Args:
        opened: the database.
        turn: the turn.
        zone: `USAGE_TIMEZONE`.
        normally: settles the turn in the first way; returns a true value if the turn is settled then.
        tokens: returns the tokens that the second way counts, or None to count nothing.
        content: the content that the second way stores.

    Returns:
        Whether the message is settled now.

    Raises:
        Exception: the database is unavailable, or every way failed.
    """

    async def plainly() -> bool:
        counts = await tokens()
        return await opened.transaction(lambda session: _plainly(session, turn, counts, content, zone), repeatable=True)

    for way in (normally, plainly):
        try:
            if await way():
                return True
        except Exception as error:
            if failures.is_unavailable(error):
                raise
            logger.exception("message %d could not be settled as it should; trying a simpler way", turn.message_id)
            metrics.settlement_failed()
    return await uncounted(opened, turn)


async def _plainly(
    session: AsyncSession, turn: PendingTurn, tokens: TokenCounts | None, content: str, zone: tzinfo
) -> bool:
    mine = *_pending(turn), Message.turn == turn.name
    found: Select[*tuple[Any, ...]] = select(
        Message.user_id, Message.conversation_id, Message.model, conversations.readable(session, Message.created_at)
    )
    row = (await session.execute(found.where(*mine))).one_or_none()
    if row is None:
        return False
    erased = row.conversation_id is not None and await conversations.is_deleted(
        session, row.user_id, row.conversation_id
    )
    created_at = row.created_at
    if created_at is None:  # no day is right: store the current time and count the message today
        created_at = clock.now()
        await session.execute(update(Message).where(*mine).values(created_at=created_at))
    usage = None
    if tokens is not None:
        usage = token_usage.Usage(
            input_tokens=tokens.input_tokens,
            output_tokens=tokens.output_tokens,
            cached_input_tokens=tokens.cached_input_tokens,
            usage_estimated=tokens.estimated,
        )
    end = token_usage.Entry(
        user_id=row.user_id,
        role="assistant",
        created_at=created_at,
        conversation_id=row.conversation_id,
        content=None if erased else content,
        model=row.model,
        status="failed",
        turn=turn.name,
        usage=usage,
    )
    return await token_usage.settle(session, turn.message_id, end, zone) is not None


async def uncounted(opened: Database, turn: PendingTurn) -> bool:
    """Mark a pending message as failed, and keep all its other values.

    The name of the turn is not compared, since an odd name cannot always be read as stored.

    Returns:
        Whether this call settled the message.
    """
    values = {"status": "failed", "content": func.coalesce(Message.content, "")}
    statement = update(Message).where(*_pending(turn)).values(values).returning(Message.id)
    return await opened.transaction(lambda session: session.scalar(statement), repeatable=True) is not None


def _pending(turn: PendingTurn) -> tuple[ColumnElement[bool], ...]:
    return Message.id == turn.message_id, Message.user_id == turn.user_id, Message.status == "pending"


async def rough_tokens(session: AsyncSession, user_id: int | None, conversation_id: str, before_id: int) -> TokenCounts:
    """Estimate a turn's input tokens from the size of its prompts.

    The content of the prompts is not read.
    """
    sized = conversations.newest(session, user_id, conversation_id, before_id, history.MAX_MESSAGES)
    is_sent = sized.c.status.is_(None) | sized.c.status.not_in(("pending", "failed"))
    total = await session.scalar(select(func.sum(sized.c.bytes)).where(is_sent))
    return TokenCounts(tokenizer.tokens_of_bytes(int(total or 0)), 0, estimated=True)
