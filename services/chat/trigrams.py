"""Fill, erase and query SQLite's index of the trigrams of messages.

The revision that creates the index describes its table and triggers. Storing a message does not change the index. The
server adds messages in batches, because a batch costs FTS5 much less than single messages.
"""

import asyncio
from collections.abc import Collection
from typing import Any

from sqlalchemy import BigInteger, CompoundSelect, func, select, text, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.database import Database
from models import Message
from services import stored_settings

# Seconds between two looks for messages to index, and between two batches, so that writers do not wait.
LOOK_SECONDS = 10.0
_BREATH_SECONDS = 0.05

# Messages that are not indexed yet, from which on a batch is indexed.
_TAIL = 1_000

# Messages that a search may read by the index. Reading more takes longer than a scan, which ends at a first match.
_MOST_CANDIDATES = 10_000

# Characters of a trigram: shorter keywords cannot be looked up.
_LENGTH = 3

_UP_TO, _TO_ERASE = "trigrams_up_to", "trigrams_to_erase"
_LAST_OF_BATCH = text("""
    SELECT max(id) FROM (
        SELECT id, total(size) OVER (ORDER BY id) - size AS characters_before FROM (
            SELECT id, coalesce(length(content), 0) AS size FROM messages WHERE id > :indexed
            ORDER BY id LIMIT :messages))
    WHERE characters_before < :characters
""").bindparams(messages=500, characters=250_000)
_ADD = text(
    "INSERT INTO message_trigrams (rowid, content)"
    " SELECT id, content FROM messages WHERE id > :indexed AND id <= :last AND content IS NOT NULL"
)
# Merges some pages of the index. FTS5 drops deleted trigrams from the file when all parts of the index are merged.
_MERGE = text("INSERT INTO message_trigrams (message_trigrams, rank) VALUES ('merge', -50)")
_CHANGES = text("SELECT total_changes()")
_MATCHING = text("SELECT rowid FROM message_trigrams WHERE message_trigrams MATCH :trigrams").columns(rowid=BigInteger)


async def keep(opened: Database, stop: asyncio.Event) -> None:
    """Index new messages, and overwrite erased content in the index.

    Returns when nothing is left to do, or `stop` is set.
    """
    if opened.engine.dialect.name != "sqlite":
        return
    while not stop.is_set() and await opened.read(_is_behind):
        await opened.transaction(advance, repeatable=True)
        await asyncio.sleep(_BREATH_SECONDS)


async def _is_behind(session: AsyncSession) -> bool:
    indexed = await _up_to(session)
    return indexed is not None and (await _is_tail_long(session, indexed) or await _is_to_erase(session))


async def _up_to(session: AsyncSession) -> int | None:
    """Return the newest message that is indexed; None without an index."""
    stored = await stored_settings.read(session, _UP_TO)
    return None if stored is None else int(stored)


async def _is_tail_long(session: AsyncSession, indexed: int) -> bool:
    return (await session.scalar(select(func.max(Message.id))) or 0) >= indexed + _TAIL


async def _is_to_erase(session: AsyncSession) -> bool:
    return await stored_settings.read(session, _TO_ERASE) is not None


async def advance(session: AsyncSession) -> None:
    """Index one batch of messages, and merge some pages."""
    indexed = await _up_to(session) or 0
    if await _is_tail_long(session, indexed):
        last = await session.scalar(_LAST_OF_BATCH, {"indexed": indexed})
        await session.execute(_ADD, {"indexed": indexed, "last": last})
        await stored_settings.store(session, _UP_TO, str(last))
    if await _is_to_erase(session):
        before = await session.scalar(_CHANGES) or 0
        await session.execute(_MERGE)
        # FTS5's documentation: a merge that changes fewer than two rows had nothing to do.
        if (await session.scalar(_CHANGES) or 0) - before < 2:
            await stored_settings.remove(session, _TO_ERASE)


async def candidates(session: AsyncSession, forms: Collection[str]) -> CompoundSelect[Any] | None:
    """Select the ids of messages that may contain a form.

    Indexed messages have all trigrams of the form, with letters in either case. Others may contain anything.

    Returns:
        None if there is no index, a form is shorter than a trigram, or the messages are too many.
    """
    indexed = await _up_to(session)
    if indexed is None or min(map(len, forms)) < _LENGTH:
        return None
    trigrams = " OR ".join(f"({' AND '.join(_quoted(form))})" for form in forms)
    found: CompoundSelect[Any] = union_all(
        select(Message.id).where(Message.id > indexed), _MATCHING.bindparams(trigrams=trigrams)
    )
    few = found.limit(_MOST_CANDIDATES + 1).subquery()
    return found if (await session.scalar(select(func.count()).select_from(few)) or 0) <= _MOST_CANDIDATES else None


def _quoted(form: str) -> list[str]:
    trigrams = {form[at : at + _LENGTH] for at in range(len(form) - _LENGTH + 1)}
    return ['"' + trigram.replace('"', '""') + '"' for trigram in sorted(trigrams)]
