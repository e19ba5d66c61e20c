"""Find conversations by a keyword, through an index of trigrams if faster.

The letters of ASCII match in either case; other letters in the usual forms, and on PostgreSQL as its `ILIKE` does.
"""

import re
from collections.abc import Sequence

from sqlalchemy import ColumnElement, SQLColumnExpression, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import database, search_index
from models import Conversation, Message
from services.chat import trigrams

# Messages of a user, and the most of them with a keyword that the index of PostgreSQL is asked for. A more common
# keyword is found sooner in each conversation, up to the first message with it.
_SAMPLE = 300
_COMMON = 45

_HAS_TRIGRAM = re.compile(r"[^\W_]{3}")
"""What `pg_trgm` looks up: letters and digits in a row."""

Text = SQLColumnExpression[str | None]


async def matching(session: AsyncSession, user_id: int, keyword: str) -> ColumnElement[bool]:
    """Match the user's conversations whose title or messages contain the keyword."""
    with_keyword = await _by_index(session, user_id, keyword)
    if with_keyword is None:
        said = select(Message.id).where(Message.conversation_id == Conversation.id)
        with_keyword = said.where(contains(session, Message.content, keyword)).exists()
    return contains(session, Conversation.title, keyword) | with_keyword


async def _by_index(session: AsyncSession, user_id: int, keyword: str) -> ColumnElement[bool] | None:
    found = select(Message.conversation_id)
    if database.is_sqlite(session):
        candidates = await trigrams.candidates(session, _forms(keyword))
        if candidates is None:
            return None
        found = found.where(Message.id.in_(candidates), contains(session, Message.content, keyword))
    elif await _is_rare(session, user_id, keyword):
        own = or_(Message.user_id == user_id, Message.user_id.is_(None))
        found = found.where(own, or_(*_indexed(Message.content, keyword)))
    else:
        return None
    return Conversation.id.in_(found)


async def _is_rare(session: AsyncSession, user_id: int, keyword: str) -> bool:
    """Return whether PostgreSQL can look up a keyword that few messages contain."""
    if not (_HAS_TRIGRAM.search(keyword) and await session.scalar(search_index.IS_VALID)):
        return False
    sample = select(Message.content).where(Message.user_id == user_id).limit(_SAMPLE).subquery()
    common = select(func.count()).select_from(sample).where(contains(session, sample.c.content, keyword))
    return (await session.scalar(common) or 0) <= _COMMON


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
