"""Store whether users like messages of their conversations."""

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.db import failures, ownership
from app.errors import NotFound, TransactionConflict
from models import Conversation, Feedback, Message, User

Kind = Literal["like", "dislike"]


async def store(session: AsyncSession, user_id: int, message_id: int, kind: Kind, description: str | None) -> Feedback:
    """Store a user's feedback on a message and replace earlier feedback.

    Raises:
        NotFound: no conversation of the user has such a message.
    """
    await session.execute(select(User.id).where(User.id == user_id).with_for_update(key_share=True))
    await _check_own(session, user_id, message_id, is_locked=True)
    earlier = await _newest(session, user_id, message_id)
    await session.execute(delete(Feedback).where(Feedback.message_id == message_id, Feedback.user_id == user_id))
    values = {
        "message_id": message_id,
        "user_id": user_id,
        "feedback_type": kind,
        "description": description,
        "created_at": clock.now(),
    }
    if earlier:
        values["id"] = earlier[0].id
    try:
        stored = await session.scalars(insert(Feedback).values(values).returning(Feedback))
    except IntegrityError as error:
        if "feedback_message_id_fkey" in failures.constraint_of(error):
            raise TransactionConflict("the message was archived concurrently") from None
        raise
    return stored.one()


async def of_message(session: AsyncSession, user_id: int, message_id: int) -> Sequence[Feedback]:
    """Return the user's feedback on a message: zero or one.

    Raises:
        NotFound: no conversation of the user has such a message.
    """
    await _check_own(session, user_id, message_id)
    return await _newest(session, user_id, message_id)


async def _check_own(session: AsyncSession, user_id: int, message_id: int, *, is_locked: bool = False) -> None:
    """Check that a message is in a conversation of the user.

    With `is_locked`, the conversation cannot be deleted until the transaction ends.
    """
    own = select(Conversation.id).join(Message, Conversation.id == Message.conversation_id)
    own = own.where(Message.id == message_id, ownership.of_user(session, Message.user_id, user_id))
    own = own.where(Conversation.user_id == user_id, Conversation.deleted_at.is_(None))
    if await session.scalar(own.with_for_update(read=True, of=Conversation) if is_locked else own) is None:
        raise NotFound("There is no such message.")


async def _newest(session: AsyncSession, user_id: int, message_id: int) -> Sequence[Feedback]:
    found = select(Feedback).where(Feedback.message_id == message_id, Feedback.user_id == user_id)
    return (await session.scalars(found.order_by(Feedback.id.desc()).limit(1))).all()


async def remove(session: AsyncSession, user_id: int, feedback_id: int) -> None:
    """Delete a user's feedback on a message, older feedback included.

    Raises:
        NotFound: the user has no such feedback.
    """
    named = delete(Feedback).where(Feedback.id == feedback_id, Feedback.user_id == user_id)
    message_id = await session.scalar(named.returning(Feedback.message_id))
    if message_id is None:
        raise NotFound("There is no such feedback.")
    await session.execute(delete(Feedback).where(Feedback.message_id == message_id, Feedback.user_id == user_id))
