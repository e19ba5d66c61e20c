"""Stop running answers, also those of other processes.

The caller's process marks the answer in the database; the process that owns the turn looks for marks.
"""

from collections.abc import Collection

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import NotFound
from models import Message
from services.chat import finish_reasons
from services.chat.leases import PendingTurn


async def request(session: AsyncSession, user_id: int, message_id: int) -> str | None:
    """Mark a user's running answer for its process to stop.

    Returns:
        The name of the turn; None if the answer has already ended.

    Raises:
        NotFound: there is no such answer, or it belongs to another user.
    """
    own = Message.id == message_id, Message.user_id == user_id, Message.role == "assistant"
    running = Message.status == "pending", Message.turn.is_not(None)
    mark = update(Message).where(*own, *running).values(finish_reason=finish_reasons.STOPPED)
    turn: str | None = await session.scalar(mark.returning(Message.turn))
    if turn is None and await session.scalar(select(Message.id).where(*own)) is None:
        raise NotFound("There is no such answer.")
    return turn


async def marked(session: AsyncSession, turns: Collection[PendingTurn]) -> Collection[str]:
    """Return the names of those turns that are marked as stopped."""
    these = Message.turn.in_({turn.name for turn in turns}), Message.user_id.in_({turn.user_id for turn in turns})
    is_marked = Message.status == "pending", Message.finish_reason == finish_reasons.STOPPED
    return set(await session.scalars(select(Message.turn).where(*is_marked, *these)))
