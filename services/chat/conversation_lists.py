"""List and search a user's conversations, page by page."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Row, Select, func, select, type_coerce
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import database, ownership
from models import Conversation, Message
from models.base import AnyString
from services.chat import conversations, searches
from services.chat.conversations import StoredConversation

RELATED = 5
"""The maximum number of matching messages that a search returns for each conversation."""

# Characters of a related message: the length of the excerpt around the keyword, and its part before the keyword.
EXCERPT = 2_000
_BEFORE_KEYWORD = 500

Related = Row[*tuple[Any, ...]]


class Page(NamedTuple):
    """A page of a user's conversations, latest first, and the total number.

    After a search, `related` holds the newest messages with the keyword, by conversation.
    """

    conversations: Sequence[StoredConversation]
    total: int
    message_counts: Mapping[str, int]
    related: Mapping[str, Sequence[Related]]


async def listed(session: AsyncSession, user_id: int, page: int, limit: int, keyword: str = "") -> Page:
    """Return one page of the conversations that are not deleted.

    Pages are numbered from 1. A keyword selects the conversations whose title or messages contain the keyword, in upper
    or lower case.
    """
    own = [Conversation.user_id == user_id, Conversation.deleted_at.is_(None)]
    if keyword:
        own.append(await searches.matching(session, user_id, keyword))
    latest = func.coalesce(Conversation.updated_at, Conversation.created_at).desc().nulls_last()
    # Counted in the same statement: a search reads all messages, and need not do so twice.
    columns = *conversations.shown(session, user_id), func.count().over().label("total")
    statement = select(*columns).where(*own).order_by(latest, Conversation.id)
    found = (await session.execute(statement.offset((page - 1) * limit).limit(limit))).all()
    if found or page == 1:
        total = found[0].total if found else 0
    else:  # a page after the last one
        total = await session.scalar(select(func.count()).select_from(Conversation).where(*own))
    ids = [conversation.id for conversation in found]
    related = await _related(session, user_id, ids, keyword) if keyword else {}
    return Page(found, total or 0, await _message_counts(session, user_id, ids), related)


async def _message_counts(session: AsyncSession, user_id: int, ids: Sequence[str]) -> Mapping[str, int]:
    of = type_coerce(Message.conversation_id, AnyString)
    own = Message.conversation_id.in_(ids), ownership.of_user(session, Message.user_id, user_id)
    counts = select(of, func.count()).where(*own).group_by(Message.conversation_id)
    return {conversation_id: count for conversation_id, count in await session.execute(counts) if conversation_id}


async def _related(
    session: AsyncSession, user_id: int, ids: Sequence[str], keyword: str
) -> Mapping[str, Sequence[Related]]:
    is_own = ownership.of_user(session, Message.user_id, user_id)
    matching = Message.conversation_id.in_(ids), is_own, searches.contains(session, Message.content, keyword)
    rank = func.row_number().over(partition_by=Message.conversation_id, order_by=Message.id.desc())
    ranked = select(Message.id, rank.label("rank")).where(*matching).subquery()
    find = func.instr if database.is_sqlite(session) else func.strpos
    at = find(func.lower(Message.content), keyword.lower()) - _BEFORE_KEYWORD
    columns: Select[*tuple[Any, ...]] = select(
        type_coerce(Message.conversation_id, AnyString).label("conversation_id"),
        Message.id,
        Message.role,
        type_coerce(func.substr(Message.content, _at_least_one(session, at), EXCERPT), AnyString).label("content"),
        conversations.readable(session, Message.created_at),
    )
    newest = columns.join(ranked, ranked.c.id == Message.id).where(ranked.c.rank <= RELATED, is_own)
    found: defaultdict[str, list[Related]] = defaultdict(list)
    for row in await session.execute(newest.order_by(Message.id.desc())):
        found[row.conversation_id].append(row)
    return found


def _at_least_one(session: AsyncSession, position: ColumnElement[int]) -> ColumnElement[int]:
    return (func.max if database.is_sqlite(session) else func.greatest)(position, 1)
