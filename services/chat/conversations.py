"""Read and delete conversations.

A deletion erases the content and keeps the usage.

Old rows may hold arbitrary values that other tools wrote. Each column is read as its own type, or as None.
"""

import uuid
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    ColumnElement,
    Integer,
    Label,
    LargeBinary,
    Row,
    Select,
    SQLColumnExpression,
    Subquery,
    Table,
    bindparam,
    case,
    func,
    insert,
    literal,
    select,
    type_coerce,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy import delete as sql_delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from app import clock
from app.db import database, ownership
from app.db.sqlite_connections import BY_KEY
from app.errors import NotFound, TransactionConflict
from models import Conversation, Feedback, Message, ModelCategory, User
from models.base import AnyString, AnyUsdAmount
from services.accounts import old_tables
from services.chat import images

StoredConversation = Row[*tuple[Any, ...]]
StoredMessage = Message | Row[*tuple[Any, ...]]

# A page of messages ends at the limit that is reached first. The bytes are those of the contents in UTF-8.
MAX_MESSAGES = 1_000
MAX_BYTES = 4 * 2**20

Text = SQLColumnExpression[str | None]
_SHOWN_TEXTS: Sequence[Text] = (Message.content, Message.image_urls, Message.document_context)

_FIRST_INSTANT = datetime(1, 1, 2, tzinfo=UTC)
_LAST_INSTANT = datetime(9999, 12, 30, tzinfo=UTC)


class Messages(NamedTuple):
    """Some messages of a conversation, oldest first, and whether older ones exist.

    `edited` holds the ids of the conversation's messages that were edited, each in a branch.
    """

    messages: Sequence[StoredMessage]
    has_more: bool
    edited: Collection[int]


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
        NotFound: there is no such conversation, it is deleted, or it belongs to another user.
    """
    found = await session.execute(select(*shown(session, user_id)).where(*_own(user_id, conversation_id)))
    conversation = found.one_or_none()
    if conversation is None:
        raise NotFound("There is no such conversation.")
    before_id = None if before is None else before - 1
    sized = newest(session, user_id, conversation_id, before_id, limit + 1, _SHOWN_TEXTS)
    ids = (await session.execute(select(sized.c.id, sized.c.size).order_by(sized.c.id.desc()))).all()
    page = [row.id for row in ids[:limit] if row.size <= MAX_BYTES] or [row.id for row in ids[:1]]
    messages = await _messages(session, user_id, conversation_id, page)
    return conversation, Messages(messages, len(page) < len(ids), await _edited(session, user_id, conversation_id))


async def _edited(session: AsyncSession, user_id: int, conversation_id: str) -> Collection[int]:
    branches = Conversation.user_id == user_id, Conversation.parent_conversation_id == conversation_id
    edited = select(Conversation.edited_message_id).where(*branches, Conversation.deleted_at.is_(None))
    return {id_ for id_ in await session.scalars(edited) if id_ is not None}


async def _messages(
    session: AsyncSession, user_id: int, conversation_id: str, ids: Sequence[int]
) -> Sequence[StoredMessage]:
    """Return the messages between the last and the first descending id."""
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
        Message.parent_message_id,
        Message.branch_id,
        type_coerce(Message.is_active_branch, Integer).label("is_active_branch"),
        Message.image_urls,
        Message.document_context,
    )
    page = *in_conversation(session, user_id, conversation_id), Message.id.between(ids[-1], ids[0])
    return (await session.execute(statement.where(*page).order_by(Message.id))).all()


def newest(
    session: AsyncSession,
    user_id: int | None,
    conversation_id: str,
    up_to: int | None,
    limit: int,
    texts: Sequence[Text] = (Message.content,),
) -> Subquery:
    """Select the latest messages up to one, with their size.

    `user_id` is the owner, if known. `bytes` is the size of a message's `texts`. `size` is the total of this message
    and all later ones.
    """
    length = sum((_bytes(session, text) for text in texts), start=literal(0))
    older = () if up_to is None else (Message.id <= up_to,)
    latest = (
        select(Message.id, Message.status, length.label("bytes"))
        .where(*in_conversation(session, user_id, conversation_id), *older)
        .order_by(Message.id.desc())
        .limit(limit)
        .subquery()
    )
    so_far = func.sum(latest.c.bytes).over(order_by=latest.c.id.desc())
    return select(latest, so_far.label("size")).subquery()


def shown(session: AsyncSession, user_id: int) -> Sequence[SQLColumnExpression[Any]]:
    """Return the columns of a user's conversation, readable in any old row."""
    category = select(ModelCategory.display_name).where(
        ModelCategory.id == Conversation.category_id, ModelCategory.user_id == user_id
    )
    return (
        type_coerce(Conversation.id, AnyString).label("id"),
        Conversation.title,
        Conversation.model_type,
        category.scalar_subquery().label("category_name"),
        readable(session, Conversation.created_at),
        readable(session, Conversation.updated_at),
        Conversation.parent_conversation_id,
        Conversation.edited_message_id,
    )


def readable(session: AsyncSession, instant: InstrumentedAttribute[datetime | None]) -> Label[datetime | None]:
    """Select an instant, or null if Python cannot represent it.

    The driver would fail on an instant outside of Python's calendar.
    """
    if database.is_sqlite(session):
        return instant.label(instant.key)  # `UtcDateTime` reads any value
    return case((instant.between(_FIRST_INSTANT, _LAST_INSTANT), instant)).label(instant.key)


def _bytes(session: AsyncSession, text: Text) -> ColumnElement[int]:
    if database.is_sqlite(session):  # has `octet_length` only since 3.43
        return func.coalesce(func.length(sql_cast(text, LargeBinary)), 0)
    return func.coalesce(func.octet_length(text), 0)


async def begin(session: AsyncSession, user_id: int, title: str, **values: Any) -> str:
    """Store a new conversation, and return its id.

    Raises:
        TransactionConflict: the user was deleted concurrently.
    """
    conversation_id, now = str(uuid.uuid4()), clock.now()
    values |= {"id": conversation_id, "user_id": user_id, "title": title, "created_at": now, "updated_at": now}
    try:
        await session.execute(_NEW, values)
    except IntegrityError as error:
        if "_user_id_fkey" in str(error.orig):
            raise TransactionConflict("the user was deleted concurrently") from None
        raise
    return conversation_id


async def touch(session: AsyncSession, user_id: int, conversation_id: str) -> None:
    """Store the current time as the last change of a conversation.

    Raises:
        NotFound: there is no such conversation, it is deleted, or it belongs to another user.
    """
    own = {"this_id": conversation_id, "this_user_id": user_id}
    if (await session.execute(_TOUCH, {**own, "updated_at": clock.now()})).one_or_none() is None:
        raise NotFound("There is no such conversation.")


_TABLE = cast(Table, Conversation.__table__)
_NEW = insert(_TABLE).execution_options(**BY_KEY)
_TOUCH = (
    update(_TABLE)
    .where(_TABLE.c.id == bindparam("this_id"), _TABLE.c.user_id == bindparam("this_user_id"))
    .where(_TABLE.c.deleted_at.is_(None))
    .returning(_TABLE.c.id)
    .execution_options(**BY_KEY)
)


async def delete(session: AsyncSession, user_id: int, conversation_id: str) -> Collection[str]:
    """Erase the content of a conversation permanently; its usage stays counted.

    Returns:
        The URLs of images that no message shows any more (`images.erase`).

    Raises:
        NotFound: there is no such conversation, it is deleted already, or it belongs to another user.
    """
    erased = await session.scalar(
        update(Conversation)
        .where(*_own(user_id, conversation_id))
        .values(deleted_at=clock.now(), title="")
        .returning(Conversation.id)
    )
    if erased is None:
        raise NotFound("There is no such conversation.")
    of_conversation = in_conversation(session, user_id, conversation_id)
    on_messages = Feedback.message_id.in_(select(Message.id).where(*of_conversation))
    by_user = ownership.where_known(session, Feedback.user_id, user_id)
    await session.execute(sql_delete(Feedback).where(on_messages, by_user))
    await old_tables.delete_context(session, conversation_id)
    urls = await images.urls_of(session, *of_conversation)
    nothing = {"content": None, "image_urls": None, "document_context": None}
    await session.execute(update(Message).where(*of_conversation).values(nothing))
    return await images.erase(session, user_id, urls)


async def is_deleted(session: AsyncSession, user_id: int | None, conversation_id: str) -> bool:
    """Return whether a conversation is deleted; otherwise lock it.

    The locks keep the conversation and its user until the caller's transaction ends.
    """
    statement = (
        select(Conversation.deleted_at.is_not(None))
        .join(User, User.id == Conversation.user_id)
        .where(Conversation.id == conversation_id, *(() if user_id is None else (User.id == user_id,)))
        .with_for_update(read=True, of=(User, Conversation))
    )
    found = (await session.execute(statement)).scalar_one_or_none()
    return found is None or found


def in_conversation(
    session: AsyncSession, user_id: int | None, conversation_id: str
) -> tuple[ColumnElement[bool], ...]:
    """Match the messages of a conversation, also those that are not adopted."""
    return Message.conversation_id == conversation_id, ownership.of_user(session, Message.user_id, user_id)


def _own(user_id: int, conversation_id: str) -> tuple[ColumnElement[bool], ...]:
    return Conversation.id == conversation_id, Conversation.user_id == user_id, Conversation.deleted_at.is_(None)
