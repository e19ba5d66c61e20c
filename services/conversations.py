"""Conversations: list, read, and delete, which erases what was said and leaves what was used."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.errors import NotFound
from models import Conversation, Message, User


class Page(NamedTuple):
    """Some of a user's conversations, the latest first, and how many there are."""

    conversations: Sequence[Conversation]
    total: int


async def listed(session: AsyncSession, user_id: int, page: int, limit: int) -> Page:
    """One page, counted from 1, of the conversations that are not deleted."""
    own = (Conversation.user_id == user_id, Conversation.deleted_at.is_(None))
    total = await session.scalar(select(func.count()).select_from(Conversation).where(*own))
    latest = func.coalesce(Conversation.updated_at, Conversation.created_at).desc()
    statement = select(Conversation).where(*own).order_by(latest, Conversation.id)
    found = await session.scalars(statement.offset((page - 1) * limit).limit(limit))
    return Page(found.all(), total or 0)


async def read(session: AsyncSession, user_id: int, conversation_id: str) -> tuple[Conversation, Sequence[Message]]:
    """A conversation and its messages, oldest first.

    Raises:
        NotFound: it is not there, deleted, or someone else's.
    """
    conversation = await session.scalar(select(Conversation).where(*_own(user_id, conversation_id)))
    if conversation is None:
        raise NotFound("There is no such conversation.")
    messages = await session.scalars(
        select(Message).where(Message.conversation_id == conversation_id).order_by(Message.id)
    )
    return conversation, messages.all()


async def delete(session: AsyncSession, user_id: int, conversation_id: str) -> None:
    """Erases the content of a conversation for good; what it used stays counted.

    Raises:
        NotFound: it is not there, deleted already, or someone else's.
    """
    erased = await session.scalar(
        update(Conversation)
        .where(*_own(user_id, conversation_id))
        .values(deleted_at=clock.now(), title="")
        .returning(Conversation.id)
    )
    if erased is None:
        raise NotFound("There is no such conversation.")
    await session.execute(update(Message).where(Message.conversation_id == conversation_id).values(content=None))


async def is_deleted(session: AsyncSession, conversation_id: str) -> bool:
    """Whether it is deleted; if not, nobody can delete it or its user until the caller's transaction ends."""
    statement = (
        select(Conversation.deleted_at)
        .join(User, User.id == Conversation.user_id)
        .where(Conversation.id == conversation_id)
        .with_for_update(read=True, of=(User, Conversation))
    )
    row = (await session.execute(statement)).one_or_none()
    return row is None or row.deleted_at is not None


def _own(user_id: int, conversation_id: str) -> tuple[ColumnElement[bool], ...]:
    return Conversation.id == conversation_id, Conversation.user_id == user_id, Conversation.deleted_at.is_(None)
