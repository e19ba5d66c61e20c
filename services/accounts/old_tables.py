"""Delete rows from unused tables of the earlier backend."""

from collections.abc import Collection, Iterator, Sequence

import sqlalchemy
from sqlalchemy import TableClause, column, delete, inspect, or_, select, table
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.dml import Delete

from models import Conversation

_DOCUMENTS = table("documents", column("id"), column("user_id"))
_CHUNKS = table("document_chunks", column("document_id"))
_COLLECTIONS = table("document_collections", column("id"), column("user_id"))
_CONTEXTS = table("conversation_contexts", column("conversation_id"), column("collection_id"))


async def delete_rows(session: AsyncSession, user_id: int) -> None:
    """Delete a user's rows.

    A table that is missing, or has other columns than in the earlier backend, is skipped.
    """
    await _execute(session, list(_deletions(user_id)))


async def delete_context(session: AsyncSession, conversation_id: str) -> None:
    """Delete the names of a conversation's documents, and its settings, as `delete_rows`."""
    own = _CONTEXTS.c.conversation_id == conversation_id
    await _execute(session, [((_CONTEXTS,), delete(_CONTEXTS).where(own))])


async def _execute(session: AsyncSession, deletions: Sequence[tuple[Sequence[TableClause], Delete]]) -> None:
    connection = await session.connection()
    wanted = {str(each.name) for tables, _ in deletions for each in tables}
    present = await connection.run_sync(_columns, wanted)
    for tables, statement in deletions:
        if all({each.name for each in used.columns} <= present.get(str(used.name), set()) for used in tables):
            await session.execute(statement)


def _columns(connection: sqlalchemy.Connection, wanted: Collection[str]) -> dict[str, set[str]]:
    inspector = inspect(connection)
    return {
        name: {each["name"] for each in inspector.get_columns(name)} for name in wanted if inspector.has_table(name)
    }


def _deletions(user_id: int) -> Iterator[tuple[Sequence[TableClause], Delete]]:
    """Return each statement with the tables that it uses."""
    conversations = select(Conversation.id).where(Conversation.user_id == user_id)
    documents, collections = (select(each.c.id).where(each.c.user_id == user_id) for each in (_DOCUMENTS, _COLLECTIONS))
    own_contexts = _CONTEXTS.c.conversation_id.in_(conversations), _CONTEXTS.c.collection_id.in_(collections)
    yield (_CONTEXTS, _COLLECTIONS), delete(_CONTEXTS).where(or_(*own_contexts))
    yield (_CHUNKS, _DOCUMENTS), delete(_CHUNKS).where(_CHUNKS.c.document_id.in_(documents))
    yield (_DOCUMENTS,), delete(_DOCUMENTS).where(_DOCUMENTS.c.user_id == user_id)
    yield (_COLLECTIONS,), delete(_COLLECTIONS).where(_COLLECTIONS.c.user_id == user_id)
