"""Begin and list branches of conversations.

An edited question begins a new conversation with copies of the messages before the question. A copy carries no usage:
the original answer was already counted.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Row, Select, func, insert, literal, or_, select, type_coerce, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.db import ownership
from app.errors import NotAQuestion, NotFound
from models import Conversation, Message
from models.base import AnyString
from services.chat import conversations

MAX_BRANCHES = 1_000
"""The maximum number of branches in a list, which holds the newest ones."""

_EDITED = " (Edited)"

_COPIED = (
    *(Message.role, Message.content, Message.created_at, Message.status, Message.model, Message.finish_reason),
    *(Message.image_urls, Message.document_context, Message.is_active_branch),
)


class Edited(NamedTuple):
    """A message that its owner edits, and its conversation.

    Either may have been deleted since. `begin` checks.
    """

    message_id: int
    conversation_id: str
    title: str
    model_type: str
    image_urls: str | None
    document_context: str | None
    category_id: int | None = None
    model: str | None = None
    """The model that the request of the question chose, if any."""


class Branch(NamedTuple):
    """A conversation or a branch of one.

    `edited_message_id` is None unless the conversation is a branch.
    """

    id: str
    edited_message_id: int | None
    created_at: datetime | None
    message_count: int


async def find(session: AsyncSession, user_id: int, message_id: int) -> Edited:
    """Return a message of the user.

    Raises:
        NotFound: there is no such message, or it belongs to another user.
    """
    columns: Select[*tuple[Any, ...]] = select(
        *(Message.id, Message.conversation_id, Conversation.title, Conversation.model_type),
        *(Message.image_urls, Message.document_context, Conversation.category_id, Message.model),
    )
    own = *_message(session, user_id, message_id), Conversation.user_id == user_id
    joined = columns.join(Conversation, Conversation.id == Message.conversation_id)
    row = (await session.execute(joined.where(*own))).one_or_none()
    if row is None:
        raise NotFound("There is no such message.")
    return Edited(row.id, row.conversation_id, row.title or "", row.model_type or "", *row[4:])


async def begin(session: AsyncSession, user_id: int, edited: Edited) -> str:
    """Store a branch and return its id.

    The branch is a new conversation with copies of the messages before the edited one. Pending answers are not copied.

    Raises:
        NotFound: the conversation is deleted.
        NotAQuestion: the message does not have the role `user`.
    """
    # Locks the conversation. A concurrent deletion comes either before, and nothing is copied, or after the commit.
    if await conversations.is_deleted(session, user_id, edited.conversation_id):
        raise NotFound("There is no such message.")
    if await session.scalar(select(Message.role).where(*_message(session, user_id, edited.message_id))) != "user":
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
    of_conversation = conversations.in_conversation(session, user_id, edited.conversation_id)
    copies = (
        select(literal(user_id), literal(branch_id), *_COPIED)
        .where(*of_conversation, Message.id < edited.message_id, Message.status.is_distinct_from("pending"))
        .order_by(Message.id)
    )
    columns = [Message.user_id, Message.conversation_id, *_COPIED]
    await session.execute(insert(Message).from_select([column.key for column in columns], copies))
    return branch_id


async def attach(session: AsyncSession, user_id: int, edited: Edited, message_id: int) -> None:
    """Copy the images and document context of the edited question."""
    attached = {"image_urls": edited.image_urls, "document_context": edited.document_context}
    if any(value is not None for value in attached.values()):
        question = Message.id == message_id, Message.user_id == user_id
        await session.execute(update(Message).where(*question).values(attached))


async def listed(session: AsyncSession, user_id: int, conversation_id: str) -> Sequence[Branch]:
    """Return a conversation and its relatives, oldest first.

    The relatives are its parent, the parent's other branches, and its own branches. Of all these, the newest
    `MAX_BRANCHES` are returned.

    Raises:
        NotFound: there is no such conversation, it is deleted, or it belongs to another user.
    """
    root = await _root(session, user_id, conversation_id)
    parents = {root, conversation_id}
    related = or_(Conversation.id.in_(parents), Conversation.parent_conversation_id.in_(parents))
    own = Conversation.user_id == user_id, Conversation.deleted_at.is_(None)
    of_conversation = Message.conversation_id == Conversation.id, ownership.of_user(session, Message.user_id, user_id)
    counts = select(func.count()).where(*of_conversation).scalar_subquery()
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
    """Check that two conversations of the user are related by branching.

    Raises:
        NotFound: one of them does not exist, is deleted, or belongs to another user; or neither is the parent of the
            other, and they do not have the same parent.
    """
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


def _message(session: AsyncSession, user_id: int, message_id: int) -> tuple[ColumnElement[bool], ...]:
    return Message.id == message_id, ownership.of_user(session, Message.user_id, user_id)


def _branch(row: Row[*tuple[Any, ...]]) -> Branch:
    edited = row.edited_message_id if isinstance(row.edited_message_id, int) else None
    return Branch(row.id, edited, row.created_at, row.message_count)


def _title(title: str) -> str:
    return title if title.endswith(_EDITED) else f"{title}{_EDITED}".strip()
