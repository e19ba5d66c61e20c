"""Conversations: list, read, and delete. Deleting erases what was said and keeps what was used.

Old rows may hold anything that other tools wrote. They are read all the same: each column as its type, or as None.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Label,
    LargeBinary,
    Row,
    Select,
    SQLColumnExpression,
    Subquery,
    case,
    cast,
    func,
    select,
    type_coerce,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from app import clock
from app.db import database
from app.errors import NotFound
from models import Conversation, Message, User
from models.base import AnyString, AnyUsdAmount

StoredConversation = Row[*tuple[Any, ...]]
StoredMessage = Message | Row[*tuple[Any, ...]]

# A page of messages ends at whichever comes first. The bytes are those of the contents in UTF-8.
MAX_MESSAGES = 1_000
MAX_BYTES = 4 * 2**20

_FIRST_INSTANT = datetime(1, 1, 2, tzinfo=UTC)
_LAST_INSTANT = datetime(9999, 12, 30, tzinfo=UTC)


class Page(NamedTuple):
    """Some of a user's conversations, the latest first, and how many there are."""

    conversations: Sequence[StoredConversation]
    total: int


class Messages(NamedTuple):
    """Some messages of a conversation, oldest first, and whether older ones exist."""

    messages: Sequence[StoredMessage]
    has_more: bool


async def listed(session: AsyncSession, user_id: int, page: int, limit: int) -> Page:
    """Return one page, counted from 1, of the conversations that are not deleted."""
    own = (Conversation.user_id == user_id, Conversation.deleted_at.is_(None))
    total = await session.scalar(select(func.count()).select_from(Conversation).where(*own))
    latest = func.coalesce(Conversation.updated_at, Conversation.created_at).desc().nulls_last()
    statement = select(*_shown(session)).where(*own).order_by(latest, Conversation.id)
    found = await session.execute(statement.offset((page - 1) * limit).limit(limit))
    return Page(found.all(), total or 0)


async def read(
    session: AsyncSession, user_id: int, conversation_id: str, before: int | None = None, limit: int = MAX_MESSAGES
) -> tuple[StoredConversation, Messages]:
    """Return a conversation and its newest messages.

    The content of other messages is not read. A page holds at least one message, then at most `MAX_BYTES` of content.

    Args:
        session: the caller's transaction.
        user_id: the owner.
        conversation_id: the conversation.
        before: only messages with a smaller id: the next page.
        limit: at most this many messages.

    Raises:
        NotFound: there is no such conversation, it is deleted, or it is someone else's.
    """
    found = await session.execute(select(*_shown(session)).where(*_own(user_id, conversation_id)))
    conversation = found.one_or_none()
    if conversation is None:
        raise NotFound("There is no such conversation.")
    sized = newest(session, conversation_id, None if before is None else before - 1, limit + 1)
    ids = (await session.execute(select(sized.c.id, sized.c.size).order_by(sized.c.id.desc()))).all()
    shown = [row.id for row in ids[:limit] if row.size <= MAX_BYTES] or [row.id for row in ids[:1]]
    return conversation, Messages(await _messages(session, conversation_id, shown), len(shown) < len(ids))


async def _messages(session: AsyncSession, conversation_id: str, ids: Sequence[int]) -> Sequence[StoredMessage]:
    """Return the messages from the last of some descending ids to the first."""
    if not ids:
        return []
    statement: Select[*tuple[Any, ...]] = select(
        Message.id,
        Message.role,
        Message.content,
        Message.model,
        Message.input_tokens,
        Message.output_tokens,
        Message.cached_input_tokens,
        type_coerce(Message.cost, AnyUsdAmount).label("cost"),
        Message.status,
        Message.finish_reason,
        readable(session, Message.created_at),
    )
    page = Message.conversation_id == conversation_id, Message.id.between(ids[-1], ids[0])
    return (await session.execute(statement.where(*page).order_by(Message.id))).all()


def newest(session: AsyncSession, conversation_id: str, up_to: int | None, limit: int) -> Subquery:
    """Select the latest messages up to one, each with the bytes of all from it on (`size`) and its own (`bytes`)."""
    length: ColumnElement[int] = func.octet_length(Message.content)
    if database.is_sqlite(session):  # has `octet_length` only since 3.43
        length = func.length(cast(Message.content, LargeBinary))
    older = () if up_to is None else (Message.id <= up_to,)
    latest = (
        select(Message.id, Message.status, func.coalesce(length, 0).label("bytes"))
        .where(Message.conversation_id == conversation_id, *older)
        .order_by(Message.id.desc())
        .limit(limit)
        .subquery()
    )
    so_far = func.sum(latest.c.bytes).over(order_by=latest.c.id.desc())
    return select(latest, so_far.label("size")).subquery()


def _shown(session: AsyncSession) -> Sequence[SQLColumnExpression[Any]]:
    return (
        type_coerce(Conversation.id, AnyString).label("id"),
        Conversation.title,
        Conversation.model_type,
        readable(session, Conversation.created_at),
        readable(session, Conversation.updated_at),
    )


def readable(session: AsyncSession, instant: InstrumentedAttribute[datetime | None]) -> Label[datetime | None]:
    """Select an instant, or null where Python's calendar lacks the instant and the driver would fail."""
    if database.is_sqlite(session):
        return instant.label(instant.key)  # `UtcDateTime` reads any value
    return case((instant.between(_FIRST_INSTANT, _LAST_INSTANT), instant)).label(instant.key)


async def delete(session: AsyncSession, user_id: int, conversation_id: str) -> None:
    """Erase the content of a conversation for good; its usage stays counted.

    Raises:
        NotFound: there is no such conversation, it is deleted already, or it is someone else's.
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
    """Return whether it is deleted; if not, locks keep it and its user until the caller's transaction ends."""
    statement = (
        select(Conversation.deleted_at.is_not(None))
        .join(User, User.id == Conversation.user_id)
        .where(Conversation.id == conversation_id)
        .with_for_update(read=True, of=(User, Conversation))
    )
    found = (await session.execute(statement)).scalar_one_or_none()
    return found is None or found


def _own(user_id: int, conversation_id: str) -> tuple[ColumnElement[bool], ...]:
    return Conversation.id == conversation_id, Conversation.user_id == user_id, Conversation.deleted_at.is_(None)
