"""Fill, erase and query SQLite's index of the trigrams of messages.

The revision that creates the index describes its table and triggers. Storing a message does not change the index. The
server adds messages in batches, because a batch costs FTS5 much less than single messages.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Select, column, delete, func, literal_column, select, table, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import database
from app.db.database import Database
from models import FoundationSetting, Message
from services import stored_settings

# Seconds between two looks for messages to index, and between two batches, so that writers do not wait.
LOOK_SECONDS = 10.0
_BREATH_SECONDS = 0.05

# Messages that are not indexed yet, from which on a batch is indexed, and the most messages and characters of a batch.
_TAIL = 1_000
_BATCH = 500
_BATCH_CHARACTERS = 500_000

_UP_TO = "trigrams_up_to"
_TO_ERASE = "trigrams_to_erase"
_PAGES = 50
"""Pages of the index that one transaction merges, to overwrite what was erased."""

LENGTH = 3
"""Characters of a trigram: shorter keywords cannot be looked up."""

_TABLE = table("message_trigrams", column("rowid"))


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
    indexed = await up_to(session)
    if indexed is None:
        return False
    newer = select(Message.id).where(Message.id > indexed).limit(_TAIL).subquery()
    return await _is_to_erase(session) or await session.scalar(select(func.count()).select_from(newer)) == _TAIL


async def up_to(session: AsyncSession) -> int | None:
    """Return the newest message that is indexed; None without an index."""
    stored = await stored_settings.read(session, _UP_TO) if database.is_sqlite(session) else None
    return None if stored is None else int(stored)


async def _is_to_erase(session: AsyncSession) -> bool:
    return await stored_settings.read(session, _TO_ERASE) is not None


async def advance(session: AsyncSession) -> None:
    """Index one batch of messages, and merge some pages."""
    await _index(session)
    if await _is_to_erase(session):
        await _merge(session)


async def _index(session: AsyncSession) -> None:
    indexed = await up_to(session)
    sizes = select(Message.id, func.length(Message.content).label("size")).where(Message.id > indexed)
    rows = (await session.execute(sizes.order_by(Message.id).limit(_TAIL))).all()
    if len(rows) < _TAIL:
        return
    last, characters = rows[0].id, 0
    for id_, size in rows[:_BATCH]:
        characters += size or 0
        if characters > _BATCH_CHARACTERS:
            break
        last = id_
    new = "SELECT id, content FROM messages WHERE id > :indexed AND id <= :last AND content IS NOT NULL"
    added = text(f"INSERT INTO message_trigrams (rowid, content) {new}")
    await session.execute(added, {"indexed": indexed, "last": last})
    await stored_settings.store(session, _UP_TO, str(last))


async def _merge(session: AsyncSession) -> None:
    """Merge some pages of the index.

    FTS5 drops deleted trigrams from the file only when it has merged all parts of the index into one.
    """
    changes = select(func.total_changes())
    before = await session.scalar(changes) or 0
    await session.execute(
        text("INSERT INTO message_trigrams (message_trigrams, rank) VALUES ('merge', :pages)"), {"pages": -_PAGES}
    )
    # FTS5's documentation: a merge that changes fewer than two rows had nothing to do.
    if (await session.scalar(changes) or 0) - before < 2:
        await session.execute(delete(FoundationSetting).where(FoundationSetting.name == _TO_ERASE))


def candidates(forms: Iterable[str]) -> Select[Any]:
    """Select the ids of indexed messages that may contain a form.

    They have all trigrams of the form, with letters in either case.
    """
    wanted = " OR ".join(f"({' AND '.join(_quoted(form))})" for form in forms)
    return select(_TABLE.c.rowid).where(literal_column(_TABLE.name).op("MATCH")(wanted))


def _quoted(form: str) -> list[str]:
    trigrams = {form[at : at + LENGTH] for at in range(len(form) - LENGTH + 1)}
    return ['"' + trigram.replace('"', '""') + '"' for trigram in sorted(trigrams)]
