"""Find conversations by a keyword, through an index of trigrams if faster.

The letters of ASCII match in either case; other letters in the usual forms, and on PostgreSQL as its `ILIKE` does.
"""

import re
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Select, SQLColumnExpression, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import database, ownership, search_index
from models import Conversation, Message
from services.chat import trigrams

# Messages of a user, and how many of them have a rare keyword at most. A more common one is found sooner in each
# conversation, up to the first message with it.
_SAMPLE = 300
_COMMON = 45

_HAS_TRIGRAM = re.compile(r"[^\W_]{3}")
"""What `pg_trgm` looks up: letters and digits in a row."""

Text = SQLColumnExpression[str | None]


def _in_conversation(session: AsyncSession, user_id: int) -> Select[int]:
    own = ownership.of_user(session, Message.user_id, user_id)
    return select(Message.id).where(Message.conversation_id == Conversation.id, own)


async def matching(session: AsyncSession, user_id: int, keyword: str) -> ColumnElement[bool]:
    """Match the user's conversations whose title or messages contain the keyword."""
    find = _by_sqlite if database.is_sqlite(session) else _by_postgresql
    return contains(session, Conversation.title, keyword) | await find(session, user_id, keyword)


async def _by_sqlite(session: AsyncSession, user_id: int, keyword: str) -> ColumnElement[bool]:
    with_keyword = contains(session, Message.content, keyword)
    candidates = await trigrams.candidates(session, _forms(keyword))
    if candidates is None:
        return _in_conversation(session, user_id).where(with_keyword).exists()
    return Conversation.id.in_(select(Message.conversation_id).where(Message.id.in_(candidates), with_keyword))


async def _by_postgresql(session: AsyncSession, user_id: int, keyword: str) -> ColumnElement[bool]:
    sample = select(Message.content).where(Message.user_id == user_id).limit(_SAMPLE).subquery()
    common = select(func.count()).select_from(sample).where(contains(session, sample.c.content, keyword))
    said = _in_conversation(session, user_id).where(contains(session, Message.content, keyword))
    if (await session.scalar(common) or 0) > _COMMON:
        # Not EXISTS, which PostgreSQL may answer by a search of all messages. This one ends at a first match.
        return said.limit(1).scalar_subquery().is_not(None)
    if not (_HAS_TRIGRAM.search(keyword) and await session.scalar(search_index.IS_VALID)):
        return said.exists()
    own = ownership.of_user(session, Message.user_id, user_id)
    return Conversation.id.in_(select(Message.conversation_id).where(own, or_(*_indexed(Message.content, keyword))))


def contains(session: AsyncSession, text: Text, keyword: str) -> ColumnElement[bool]:
    """Match texts that contain the keyword, each of whose characters is plain."""
    if database.is_sqlite(session):  # LIKE folds ASCII by itself
        return or_(*(text.contains(form, autoescape=True) for form in _forms(keyword)))
    if keyword.isascii():  # several times faster than LIKE
        return func.strpos(func.lower(text.collate("C")), keyword.lower()) > 0
    return or_(*_indexed(text, keyword))


def _indexed(text: Text, keyword: str) -> Sequence[ColumnElement[bool]]:
    """Match as `contains` does, in the terms of PostgreSQL's index."""
    folded = func.lower(text.collate("C")).collate("default")
    if keyword.isascii():
        return [folded.contains(keyword.lower(), autoescape=True)]
    return [folded.icontains(_ascii_lower(form), autoescape=True) for form in _forms(keyword)]


def _ascii_lower(text: str) -> str:
    return text.encode().lower().decode()  # `bytes.lower` knows ASCII alone


def _forms(keyword: str) -> Sequence[str]:
    if keyword.isascii():
        return [keyword]
    return sorted({keyword, keyword.lower(), keyword.upper(), keyword.capitalize(), keyword.title()})
