"""Find the messages and titles that contain a keyword.

The letters of ASCII match in either case; other letters in the usual forms, and on PostgreSQL as its `ILIKE` does.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import (
    ColumnElement,
    Executable,
    SQLColumnExpression,
    String,
    func,
    literal,
    or_,
    select,
    type_coerce,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import database
from models import Conversation, Message
from models.base import AnyString
from services.chat import trigrams

Hits = Mapping[str, Sequence[int]]
"""The ids of messages with a keyword, the newest first, by conversation."""

_SAMPLE = 300
_COMMON = 0.15
"""A keyword is common if more than this share of the sampled messages contain it."""

Text = SQLColumnExpression[str | None]


async def hits(session: AsyncSession, user_id: int, keyword: str) -> Hits | None:
    """Find a user's messages with a keyword; None if it is common.

    A common keyword is found faster in each conversation, up to the first message that contains it. The result may
    contain messages of other users.
    """
    contents = select(Message.content).where(Message.user_id == user_id).limit(_SAMPLE).subquery()
    with_keyword = func.count().filter(contains(session, contents.c.content, keyword))
    sampled, found = (await session.execute(select(func.count(), with_keyword).select_from(contents))).one()
    if found > sampled * _COMMON:
        return None
    rows = await session.execute(await _searched(session, user_id, keyword, is_small=sampled < _SAMPLE))
    by_conversation: defaultdict[str, list[int]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.id, reverse=True):
        by_conversation[row.conversation_id].append(row.id)
    return by_conversation


async def _searched(session: AsyncSession, user_id: int, keyword: str, *, is_small: bool) -> Executable:
    conversation_id = type_coerce(Message.conversation_id, AnyString).label("conversation_id")
    found = select(conversation_id, Message.id).where(contains(session, Message.content, keyword))
    if not database.is_sqlite(session):  # which combines its index of users with that of trigrams
        return found.where(or_(Message.user_id == user_id, Message.user_id.is_(None)))
    own = select(Conversation.id).where(Conversation.user_id == user_id, Conversation.deleted_at.is_(None))
    by_scan = found.where(Message.conversation_id.in_(own))
    forms = _forms(keyword)
    indexed = await trigrams.up_to(session)
    if indexed is None or is_small or min(map(len, forms)) < trigrams.LENGTH:
        return by_scan
    by_index = found.where(Message.id <= indexed, Message.id.in_(trigrams.candidates(forms)))
    return union_all(by_index, by_scan.where(Message.id > indexed))


def has_message(session: AsyncSession, keyword: str, found: Hits | None) -> ColumnElement[bool]:
    """Match the conversations with a message that contains the keyword.

    Args:
        session: the caller's transaction.
        keyword: the keyword.
        found: what `hits` found.
    """
    if found is None:
        said = select(Message.id).where(Message.conversation_id == Conversation.id)
        with_keyword = contains(session, Message.content, keyword)
        if not database.is_sqlite(session):  # whose LIKE is several times faster than ILIKE
            with_keyword = Message.content.contains(keyword, autoescape=True) | with_keyword
        # Not EXISTS: PostgreSQL would consider searching all messages at once.
        return said.where(with_keyword).limit(1).scalar_subquery().is_not(None)
    if database.is_sqlite(session):
        return Conversation.id.in_(select(func.json_each(json.dumps(list(found))).table_valued("value").c.value))
    return Conversation.id.in_(select(func.unnest(literal(list(found), ARRAY(String)))))


def contains(session: AsyncSession, text: Text, keyword: str) -> ColumnElement[bool]:
    """Match texts that contain the keyword, each of whose characters is plain."""
    folds = not database.is_sqlite(session) and keyword.lower() != keyword.upper()  # SQLite's LIKE folds by itself
    like = text.icontains if folds else text.contains
    return or_(*(like(form, autoescape=True) for form in _forms(keyword)))


def _forms(keyword: str) -> Collection[str]:
    """Return forms of a keyword whose case some databases do not fold."""
    if keyword.isascii():
        return [keyword]
    return sorted({keyword, keyword.lower(), keyword.upper(), keyword.capitalize(), keyword.title()})
