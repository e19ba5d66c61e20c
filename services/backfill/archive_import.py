"""Bring archived messages back from their files.

Each batch is one transaction: it stores the messages, and subtracts their sums from the adjustments. The table
`archives` counts how many lines of a file are back, so that an import can be killed and repeated.
"""

import functools
import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast
from zoneinfo import ZoneInfo

from sqlalchemy import Table, bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.console import Listener, Progress
from app.db.database import Database
from app.errors import ConfigurationError
from models import Archive, ArchivedKey, Conversation, UsageAdjustment, User
from models.usage_adjustments import ARCHIVED
from services.backfill import archive_files, archive_lines, transactions
from services.backfill.archive_files import WHOLE
from services.backfill.archive_lines import FEEDBACK, IMAGES, MESSAGES, Tables, among
from services.backfill.archive_report import Imported
from services.backfill.archive_rows import Columns
from services.backfill.archiving import MOST_BYTES, of_messages, settle
from services.backfill.transactions import Throttle
from services.usage import time_zone
from services.usage.rollups import SUMMED, Slot

ROWS, LEAST_ROWS, MOST_ROWS = 1_000, 500, 5_000
"""The first, minimum and maximum number of messages of a batch."""
# Seconds that a transaction may hold its locks.
SECONDS = 0.1

_TEXTS = ("content", "image_urls", "document_context")


class Restored(NamedTuple):
    """Count the lines of a batch, and its messages by outcome."""

    lines: int
    messages: int = 0
    users_gone: int = 0
    content_erased: int = 0
    new_ids: int = 0


async def import_archive(database: Database, path: Path, zone: ZoneInfo, listener: Listener) -> Imported:
    """Import a file, or all files of a directory.

    Files of other databases, and files that are imported already, are skipped. The work is safe concurrently with
    traffic and other runs, and may be killed at any point.

    Args:
        database: at the newest schema.
        path: a directory or a file.
        zone: `USAGE_TIMEZONE`.
        listener: receives the progress.

    Raises:
        ConfigurationError: the path does not exist, a file is damaged, or rows do not fit; only whole batches are kept.
    """
    await settle(database, archive_files.directory_of(path))
    await database.read(functools.partial(time_zone.refuse_another, zone=zone))
    files = archive_files.found(path)
    imported, archives = Imported(), await database.read(_archives)
    for file in files:
        if file.stem in archives:
            archive_files.verify(file, archives[file.stem])
    total = sum(archives[file.stem].messages - archives[file.stem].restored for file in files if file.stem in archives)
    tables = await database.read(archive_lines.tables)
    throttle = Throttle.on(database, ROWS, LEAST_ROWS, MOST_ROWS, SECONDS)
    for file in files:
        if file.stem not in archives:
            imported.files_skipped.append(file.name)
            continue
        await _import_file(database, file, archives.pop(file.stem), tables, throttle, imported, total, listener)
        imported.files.append(file.name)
    imported.files_missing = [f"{name}{WHOLE}" for name in sorted(archives)]
    return imported


async def _archives(session: AsyncSession) -> dict[str, Archive]:
    return {archive.name: archive for archive in await session.scalars(select(Archive))}


async def _import_file(
    database: Database,
    file: Path,
    archive: Archive,
    tables: Tables,
    throttle: Throttle,
    imported: Imported,
    total: int,
    listener: Listener,
) -> None:
    done = archive.restored
    lines = archive_files.lines(file, archive.size_bytes, done)
    while batch := _batch(lines, throttle.rows):
        work = functools.partial(_restore, tables=tables, name=archive.name, done=done, lines=batch)
        restored = await transactions.run(database, work, throttle)
        done += restored.lines
        for name in ("messages", "users_gone", "content_erased", "new_ids"):
            setattr(imported, name, getattr(imported, name) + getattr(restored, name))
        moved = imported.messages + imported.users_gone
        listener(Progress("importing", moved, max(moved, total)))


def _batch(lines: Iterator[bytes], rows: int) -> Sequence[bytes]:
    batch, size = list[bytes](), 0
    for line in itertools.islice(lines, rows):
        batch.append(line)
        size += len(line)
        if size >= MOST_BYTES:
            break
    return batch


async def _restore(session: AsyncSession, tables: Tables, name: str, done: int, lines: Sequence[bytes]) -> Restored:
    archive = await session.get(Archive, name, with_for_update=True)
    if archive is None or archive.restored >= done + len(lines):  # an earlier attempt, or another run
        return Restored(len(lines))
    if archive.restored != done:
        raise ConfigurationError(f"{name}: another process imports this archive: run the command again")
    read = [json.loads(line) for line in lines]
    users = await _present_users(session, {line["message"]["user_id"] for line in read})
    present = [line for line in read if line["message"]["user_id"] in users]
    erased = await _erase(session, present)
    ids, new_ids = await _store(session, tables, present)
    await _subtract(session, ids, users)
    await _forget_keys(session, present)
    archive.restored += len(lines)
    if archive.restored == archive.messages:
        await session.delete(archive)
    await session.flush()
    return Restored(len(lines), len(present), len(read) - len(present), erased, new_ids)


async def _present_users(session: AsyncSession, ids: Collection[int]) -> Collection[int]:
    users = select(User.id).where(User.id.in_(ids)).order_by(User.id)
    return set(await session.scalars(users.with_for_update(read=True, key_share=True)))


async def _erase(session: AsyncSession, lines: Sequence[dict[str, Any]]) -> int:
    """Remove the content of messages whose conversation is deleted; count them."""
    wanted = {line["message"]["conversation_id"] for line in lines if _has_text(line, "conversation_id")}
    talks = (
        select(Conversation.id, Conversation.deleted_at).where(Conversation.id.in_(wanted)).order_by(Conversation.id)
    )
    is_deleted = {row.id: row.deleted_at is not None for row in await session.execute(talks.with_for_update(read=True))}
    erased = 0
    for line in lines:
        message = line["message"]
        conversation_id = message["conversation_id"]
        if not _has_text(line, "conversation_id") or is_deleted.get(conversation_id) is False:
            continue
        erased += 1
        message |= {name: None for name in _TEXTS if name in message}
        line |= {"feedback": [], "images": []}
        if conversation_id not in is_deleted:
            message["conversation_id"] = None
    return erased


def _has_text(line: dict[str, Any], name: str) -> bool:
    """Return whether a column is a text; SQLite may store anything else."""
    return isinstance(line["message"][name], str)


async def _store(session: AsyncSession, tables: Tables, lines: Sequence[dict[str, Any]]) -> tuple[Sequence[int], int]:
    """Store messages with their feedback and images.

    Returns:
        The ids of the messages, and how many ids are new.
    """
    columns = tables[MESSAGES.name]
    messages = [columns.decode(line["message"]) for line in lines]
    ids, new_ids = await _insert(session, columns, messages)
    feedback = [
        {**row, "message_id": id_} for line, id_ in zip(lines, ids, strict=True) for row in line.get("feedback", ())
    ]
    await _store_feedback(session, tables[FEEDBACK.name], feedback)
    columns = tables[IMAGES.name]
    images = {row["name"]: columns.decode(row) for line in lines for row in line.get("images", ())}
    await _insert_all(session, columns, list(images.values()), "ON CONFLICT DO NOTHING")
    return ids, new_ids


async def _store_feedback(session: AsyncSession, columns: Columns, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    users = await _present_users(session, {row["user_id"] for row in rows})
    await _insert(session, columns, [columns.decode(row) for row in rows if row["user_id"] in users])


async def _insert(session: AsyncSession, columns: Columns, rows: Sequence[dict[str, Any]]) -> tuple[Sequence[int], int]:
    """Insert rows; the database assigns an id where another row has it."""
    ids = [int(row["id"]) for row in rows]
    table = MESSAGES if columns.table == MESSAGES.name else FEEDBACK
    taken = set(await session.scalars(select(table.c.id).where(among(session, table.c.id, ids))))
    await _insert_all(session, columns, [row for row, id_ in zip(rows, ids, strict=True) if id_ not in taken])
    for i, row in enumerate(rows):
        if ids[i] in taken:
            others = {name: value for name, value in row.items() if name != "id"}
            statement = columns.insert(list(others), "RETURNING id")
            ids[i] = (await session.execute(statement, _parameters(others))).scalar_one()
    return ids, len(taken)


async def _insert_all(session: AsyncSession, columns: Columns, rows: Sequence[dict[str, Any]], more: str = "") -> None:
    connection = await session.connection()
    for names, same in itertools.groupby(rows, key=list):
        await connection.execute(columns.insert(names, more), [_parameters(row) for row in same])


def _parameters(row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"p{i}": value for i, value in enumerate(row.values())}


async def _subtract(session: AsyncSession, ids: Sequence[int], users: Collection[int]) -> None:
    """Subtract the sums of messages from the adjustments that stood for them.

    Raises:
        ConfigurationError: an adjustment is missing.
    """
    sums = of_messages(session, ids).subquery("sums")
    same = [getattr(UsageAdjustment, name) == sums.c[name] for name in Slot._fields]
    left = {name: getattr(UsageAdjustment, name) - sums.c[name] for name in SUMMED}
    archived = UsageAdjustment.reason == ARCHIVED
    changed = await session.execute(
        update(UsageAdjustment).where(*same, archived).values(left), execution_options={"synchronize_session": False}
    )
    wanted = len((await session.execute(of_messages(session, ids))).all())
    if changed.rowcount != wanted:  # type: ignore[attr-defined]
        raise ConfigurationError("the adjustments of archived messages are missing: the messages are not imported")
    empty = [getattr(UsageAdjustment, name) == 0 for name in SUMMED if name != "total_cost"]
    await session.execute(delete(UsageAdjustment).where(archived, UsageAdjustment.user_id.in_(users), *empty))


async def _forget_keys(session: AsyncSession, lines: Sequence[dict[str, Any]]) -> None:
    messages = [line["message"] for line in lines if _has_text(line, "idempotency_key")]
    keys = [{"owner": message["user_id"], "key": message["idempotency_key"]} for message in messages]
    if keys:
        await session.execute(_FORGET, keys)


_KEYS = cast(Table, ArchivedKey.__table__)
_FORGET = delete(_KEYS).where(_KEYS.c.user_id == bindparam("owner"), _KEYS.c.idempotency_key == bindparam("key"))
"""Deletes one key, for many: of a list of pairs, SQLite would read the whole table."""
