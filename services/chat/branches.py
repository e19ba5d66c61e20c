"""Branches: an edited question begins a new conversation, after copies of the messages before it.

A copy carries no usage: the answer was counted once, where it was given.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Row, Select, func, insert, literal, or_, select, type_coerce, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.errors import NotAQuestion, NotFound
from models import Conversation, Message
from models.base import AnyString
from services.chat import conversations

MAX_BRANCHES = 1_000
"""The most branches that are listed: the newest ones."""

_EDITED = " (Edited)"

_COPIED = (
    *(Message.role, Message.content, Message.created_at, Message.status, Message.model, Message.finish_reason),
    *(Message.image_urls, Message.document_context, Message.is_active_branch),
)


class Edited(NamedTuple):
    """A message that its owner edits, and its conversation. Both may be deleted: `begin` looks."""

    message_id: int
    conversation_id: str
    title: str
    model_type: str
    image_urls: str | None
    document_context: str | None
    category_id: int | None = None


class Branch(NamedTuple):
    """A conversation among its branches; `edited_message_id` is None in one that is no branch."""

    id: str
    edited_message_id: int | None
    created_at: datetime | None
    message_count: int


async def find(session: AsyncSession, user_id: int, message_id: int) -> Edited:
    """Return a message of the user's.

    Raises:
        NotFound: there is no such message, or it is someone else's.
    """
    columns: Select[*tuple[Any, ...]] = select(
        *(Message.id, Message.conversation_id, Conversation.title, Conversation.model_type),
        *(Message.image_urls, Message.document_context, Conversation.category_id),
    )
    own = Message.id == message_id, Conversation.user_id == user_id
    joined = columns.join(Conversation, Conversation.id == Message.conversation_id)
    row = (await session.execute(joined.where(*own))).one_or_none()
    if row is None:
        raise NotFound("There is no such message.")
    return Edited(row.id, row.conversation_id, row.title or "", row.model_type or "", *row[4:])


async def begin(session: AsyncSession, user_id: int, edited: Edited) -> str:
    """Store a new conversation with copies of the messages before the edited one; return its id.

    An answer that is pending is not copied.

    Raises:
        NotFound: the conversation is deleted.
        NotAQuestion: the message is none of the user's own.
    """
    # Locks the conversation: a deletion erases either before, so that nothing is copied, or afterwards.
    if await conversations.is_deleted(session, edited.conversation_id):
        raise NotFound("There is no such message.")
    if await session.scalar(select(Message.role).where(Message.id == edited.message_id)) != "user":
        raise NotAQuestion("Only a question can be edited, not an answer.")
    branch_id, now = str(uuid.uuid4()), clock.now()
    values: dict[str, Any] = {
        "id": branch_id,
        "user_id": user_id,
        "title": _title(edited.title),
        "model_type": edited.model_type,
        "category_id": edited.category_id,
        "parent_conversation_id": edited.conversation_id,
        "edited_message_id": edited.message_id,
    }
    await session.execute(insert(Conversation).values(**values, created_at=now, updated_at=now))
    earlier = Message.conversation_id == edited.conversation_id, Message.id < edited.message_id
    copies = (
        select(literal(user_id), literal(branch_id), *_COPIED)
        .where(*earlier, Message.status.is_distinct_from("pending"))
        .order_by(Message.id)
    )
    columns = [Message.user_id, Message.conversation_id, *_COPIED]
    await session.execute(insert(Message).from_select([column.key for column in columns], copies))
    return branch_id


async def attach(session: AsyncSession, edited: Edited, message_id: int) -> None:
    """Give the new question the images and the document context of the edited one."""
    attached = {"image_urls": edited.image_urls, "document_context": edited.document_context}
    if any(value is not None for value in attached.values()):
        await session.execute(update(Message).where(Message.id == message_id).values(attached))


async def listed(session: AsyncSession, user_id: int, conversation_id: str) -> Sequence[Branch]:
    """Return a conversation with its parent, the parent's other branches, and its own branches, oldest first.

    Raises:
        NotFound: there is no such conversation, it is deleted, or it is someone else's.
    """
    root = await _root(session, user_id, conversation_id)
    parents = {root, conversation_id}
    related = or_(Conversation.id.in_(parents), Conversation.parent_conversation_id.in_(parents))
    own = Conversation.user_id == user_id, Conversation.deleted_at.is_(None)
    counts = select(func.count()).where(Message.conversation_id == Conversation.id).scalar_subquery()
    columns: Select[*tuple[Any, ...]] = select(
        type_coerce(Conversation.id, AnyString).label("id"),
        Conversation.edited_message_id,
        conversations.readable(session, Conversation.created_at),
        counts.label("message_count"),
    )
    order = Conversation.created_at.desc().nulls_last(), Conversation.id
    rows = (await session.execute(columns.where(*own, related).order_by(*order).limit(MAX_BRANCHES))).all()
    return [_branch(row) for row in reversed(rows)]


async def check_related(session: AsyncSession, user_id: int, conversation_id: str, branch_id: str) -> None:
    """Raise `NotFound` unless both are the user's and one is the other's parent, or both have the same."""
    own, other = [(id_, await _root(session, user_id, id_)) for id_ in (conversation_id, branch_id)]
    if not set(own) & set(other):
        raise NotFound("There is no such branch of this conversation.")


async def _root(session: AsyncSession, user_id: int, conversation_id: str) -> str:
    """Return the parent of a conversation, or the conversation itself."""
    own = Conversation.id == conversation_id, Conversation.user_id == user_id, Conversation.deleted_at.is_(None)
    row = (await session.execute(select(Conversation.parent_conversation_id).where(*own))).one_or_none()
    if row is None:
        raise NotFound("There is no such conversation.")
    return row.parent_conversation_id or conversation_id


def _branch(row: Row[*tuple[Any, ...]]) -> Branch:
    edited = row.edited_message_id if isinstance(row.edited_message_id, int) else None
    return Branch(row.id, edited, row.created_at, row.message_count)


def _title(title: str) -> str:
    return title if title.endswith(_EDITED) else f"{title}{_EDITED}".strip()
