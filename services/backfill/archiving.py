"""Move old messages to files, and keep their usage as adjustments.

Each batch is one transaction: it writes the messages to the file, deletes them, and adds their sums to the adjustments.
So the ledger and the rollups stay equal at every commit. `archive_files` describes why a file is exact at any moment.
"""

import contextlib
import functools
from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, NamedTuple, cast
from zoneinfo import ZoneInfo

from sqlalchemy import (
    ColumnElement,
    Connection,
    LargeBinary,
    Select,
    String,
    Table,
    and_,
    case,
    delete,
    exists,
    func,
    insert,
    inspect,
    literal,
    literal_column,
    or_,
    select,
    text,
    true,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.clock import Month, UtcDateTime
from app.console import Listener, Progress
from app.db import database as db
from app.db.database import Database, is_sqlite
from app.errors import ConfigurationError, TransactionConflict
from models import Archive, ArchivedKey, Conversation, Feedback, Message, MessageImage, UsageAdjustment, User
from models.messages import LOWEST_ID, is_not_adopted
from models.usage_adjustments import ARCHIVED
from services import earlier_backend
from services.backfill import archive_files, archive_lines, old_rows, transactions
from services.backfill.archive_files import Writer
from services.backfill.archive_lines import FEEDBACK, MESSAGES, Tables, among
from services.backfill.archive_report import Archived
from services.backfill.transactions import Throttle
from services.usage import full_runs, rollups, time_zone
from services.usage.rollups import SUMMED, Slot

ROWS, LEAST_ROWS, MOST_ROWS = 1_000, 500, 5_000
"""The first, minimum and maximum number of messages of a batch."""
# Bytes of a batch's texts and images; one message may have more.
MOST_BYTES = 4 * 2**20
# Bytes from which on the next batch begins a new file.
FILE_BYTES = 64 * 2**20
# Seconds that a transaction may hold its locks.
SECONDS = 0.1

_PLAIN = {"synchronize_session": False}
_FIRST_INSTANT = datetime(1, 1, 2, tzinfo=UTC)
_TEXTS = (Message.content, Message.image_urls, Message.document_context)


class Old(NamedTuple):
    """Select messages of the months before one; None means all users."""

    before: Month
    users: Collection[int] | None
    zone: ZoneInfo

    def conditions(self) -> Sequence[ColumnElement[bool]]:
        """Match these messages. `includes` decides about those without a day."""
        bound = datetime.combine(self.before.first_day, time.min, self.zone)
        counted = and_(Message.usage_date.is_not(None), Message.usage_date < self.before.first_day)
        plain = and_(Message.usage_date.is_(None), Message.created_at >= _FIRST_INSTANT, Message.created_at < bound)
        adopted = Message.user_id.is_not(None), is_not_adopted(Message).is_not(true())
        of_users = () if self.users is None else (Message.user_id.in_(self.users),)
        return (*adopted, or_(counted, plain), Message.status.is_distinct_from("pending"), *of_users)

    def includes(self, usage_date: date | None, created_at: datetime | None) -> bool:
        """Return whether a message of `conditions` belongs to these months."""
        if usage_date is not None:
            return True
        try:
            return created_at is not None and clock.usage_date(created_at, self.zone) < self.before.first_day
        except OverflowError:
            return False


class Page(NamedTuple):
    """Hold the ids of a batch, and the last id examined."""

    ids: Sequence[int]
    last_id: int


async def archive(database: Database, old: Old, directory: Path, listener: Listener) -> Archived:
    """Move old messages to files of a directory.

    The work is safe concurrently with traffic and other runs, and may be killed at any point.

    Args:
        database: at the newest schema.
        old: which messages.
        directory: where the files are made.
        listener: receives the progress.

    Raises:
        ConfigurationError: months are not over, messages are not adopted, or a file cannot be written.
    """
    check_months(old.before, old.zone)
    await database.read(functools.partial(_check_ledger, old=old))
    archive_files.prepare(directory)
    await settle(database, directory)
    total = await database.scalar(select(func.count()).select_from(Message).where(*old.conditions())) or 0
    tables = await database.read(archive_lines.tables)
    archived, throttle = Archived(), Throttle.on(database, ROWS, LEAST_ROWS, MOST_ROWS, SECONDS)
    after_id: int | None = LOWEST_ID
    while after_id is not None:
        writer = Writer(directory, str(old.before))
        try:
            while writer.committed.size_bytes < FILE_BYTES:
                page = await database.read(functools.partial(_page, old=old, after_id=after_id, limit=throttle.rows))
                if page is None:
                    after_id = None
                    break
                work = functools.partial(_move, old=old, tables=tables, ids=page.ids, writer=writer)
                archived.messages += await transactions.run(database, work, throttle)
                writer.commit()
                after_id = page.last_id
                listener(Progress("archiving", archived.messages, max(archived.messages, total)))
        finally:
            writer.finish()
            archived.add_file(writer)
    return archived


def check_months(before: Month, zone: ZoneInfo) -> None:
    """Refuse to archive months that are not over.

    Raises:
        ConfigurationError: the month is later than the current one.
    """
    current = Month.of(clock.usage_date(clock.now(), zone))
    if before > current:
        raise ConfigurationError(f"--archive-before: {current} is not over: use {current} or an earlier month")


async def _check_ledger(session: AsyncSession, old: Old) -> None:
    await time_zone.refuse_another(session, old.zone)
    if await earlier_backend.may_run(session):
        raise ConfigurationError(
            "--archive-before: an earlier backend may run, which would recompute months without archived messages:"
            " stop its processes, then run python migrate_token_data.py --finish"
        )
    if tables := await (await session.connection()).run_sync(_referencing):
        raise ConfigurationError(f"--archive-before: other tables reference messages: {', '.join(tables)}")
    async for row in old_rows.read(session, await old_rows.find(session, old.users, old.zone)):
        found = old_rows.examine(row, old.zone)
        if found.user_id is not None and found.reason is None:
            break
    else:
        if not await full_runs.is_due(session):
            return
    raise ConfigurationError("--archive-before: messages are not adopted yet: first run python migrate_token_data.py")


def _referencing(connection: Connection) -> Sequence[str]:
    """Return the tables of other products with keys of messages."""
    inspector, known = inspect(connection), {MESSAGES.name, FEEDBACK.name}
    if connection.dialect.name == "postgresql":
        known.update(connection.scalars(_PARTITIONS))
    others = (name for name in inspector.get_table_names() if name not in known)
    return [
        name
        for name in others
        if any(key["referred_table"] == MESSAGES.name for key in inspector.get_foreign_keys(name))
    ]


_PARTITIONS = text("""
    SELECT relid::regclass::text FROM unnest(ARRAY['messages', 'feedback']) AS name, pg_partition_tree(name::regclass)
""")


async def settle(database: Database, directory: Path) -> None:
    """Rename the files that a killed run left unfinished.

    No file is deleted: one without a record may belong to another database, or to a run that has just begun.
    """
    for path in archive_files.parts(directory):
        if await database.scalar(select(Archive.name).where(Archive.name == path.stem)) is not None:
            with contextlib.suppress(OSError):  # on a read-only medium, an import reads it as it is
                archive_files.rename(path)


async def _page(session: AsyncSession, old: Old, after_id: int, limit: int) -> Page | None:
    sqlite = is_sqlite(session)
    columns: Select[*tuple[Any, ...]] = select(
        Message.id, Message.usage_date, Message.created_at, _size(sqlite).label("size")
    )
    found = columns.where(Message.id > after_id, *old.conditions())
    if sqlite:  # it assigns the highest id plus one, and must not assign an archived id again
        found = found.where(Message.id < select(func.max(Message.id)).scalar_subquery())
    ids, size, last_id = list[int](), 0, None
    for row in await session.execute(found.order_by(Message.id).limit(limit)):
        size += row.size
        if ids and size > MOST_BYTES:
            break
        last_id = row.id
        if old.includes(row.usage_date, row.created_at):
            ids.append(row.id)
    return None if last_id is None else Page(ids, last_id)


def _size(sqlite: bool) -> ColumnElement[int]:
    """Return the bytes of a message's texts and images."""
    texts = sum((func.coalesce(_bytes(text, sqlite), 0) for text in _TEXTS), start=literal(0))
    images = select(func.coalesce(func.sum(_bytes(MessageImage.data, sqlite)), 0)).where(archive_lines.is_shown(sqlite))
    return texts + case((Message.image_urls.is_(None), 0), else_=images.scalar_subquery())


def _bytes(value: Any, sqlite: bool) -> ColumnElement[int]:
    return func.length(sql_cast(value, LargeBinary)) if sqlite else func.octet_length(value)


async def _move(session: AsyncSession, old: Old, tables: Tables, ids: Sequence[int], writer: Writer) -> int:
    recorded = await session.get(Archive, writer.name)
    writer.begin(recorded.size_bytes if recorded else 0)
    shows_images = Message.image_urls.is_not(None), among(session, Message.id, ids)
    has_images = bool(await session.scalar(select(exists().where(*shows_images))))
    moved = await _lock(session, old, ids, has_images)
    if not moved:
        return 0
    writer.append(await archive_lines.of(session, tables, moved, has_images))
    await _adjust(session, moved)
    await _keep_keys(session, moved)
    await session.execute(delete(Feedback).where(among(session, Feedback.message_id, moved)), execution_options=_PLAIN)
    images = await archive_lines.images_of(session, moved) if has_images else ()
    deleted = await session.execute(delete(Message).where(among(session, Message.id, moved)), execution_options=_PLAIN)
    if deleted.rowcount != len(moved):  # type: ignore[attr-defined]
        raise TransactionConflict("a message was deleted concurrently")
    await archive_lines.drop_unused(session, images)
    await _record(session, recorded, writer)
    return len(moved)


async def _lock(session: AsyncSession, old: Old, ids: Sequence[int], has_images: bool) -> Sequence[int]:
    """Lock messages as all writers do; return those to move."""
    named = among(session, Message.id, ids)
    users = select(User.id).where(User.id.in_(select(Message.user_id).where(named))).order_by(User.id)
    # The stronger lock excludes concurrent deletions of images (`services.chat.images.erase`).
    present = set(await session.scalars(users.with_for_update(read=not has_images, key_share=True)))
    talks = select(Conversation.id).where(Conversation.id.in_(select(Message.conversation_id).where(named)))
    await session.execute(talks.order_by(Conversation.id).with_for_update(read=True))
    messages = select(Message.id, Message.user_id).where(named, *old.conditions()).order_by(Message.id)
    return [row.id for row in await session.execute(messages.with_for_update()) if row.user_id in present]


async def _adjust(session: AsyncSession, ids: Sequence[int]) -> None:
    sums = of_messages(session, ids).subquery("sums")
    values: dict[str, Any] = {
        **{name: sums.c[name] for name in (*Slot._fields, *SUMMED)},
        "reason": sql_cast(ARCHIVED, String),
        "created_at": literal(clock.now(), UtcDateTime),
    }
    statement = db.insert(session, UsageAdjustment).from_select([*values], select(*values.values()).where(true()))
    added = {name: getattr(UsageAdjustment, name) + statement.excluded[name] for name in SUMMED}
    await session.execute(statement.on_conflict_do_update(index_elements=(*Slot._fields, "reason"), set_=added))


def of_messages(session: AsyncSession, ids: Sequence[int]) -> Select[*tuple[Any, ...]]:
    """Select the sums of messages by slot, as the ledger has them."""
    slot = Message.user_id, Message.usage_date, func.coalesce(Message.model, literal_column("''")).label("model")
    sums = (rollups.total(name, figure).label(name) for name, figure in rollups.figures_of(Message).items())
    counted = among(session, Message.id, ids), Message.usage_date.is_not(None)
    return select(*slot, *sums).where(*counted).group_by(*slot)


async def _keep_keys(session: AsyncSession, ids: Sequence[int]) -> None:
    names = cast(Table, ArchivedKey.__table__).c.keys()
    own = among(session, MESSAGES.c.id, ids), MESSAGES.c.idempotency_key.is_not(None)
    await session.execute(
        insert(ArchivedKey).from_select(names, select(*(MESSAGES.c[name] for name in names)).where(*own))
    )


async def _record(session: AsyncSession, recorded: Archive | None, writer: Writer) -> None:
    state = writer.state._asdict()
    if recorded is None:
        session.add(Archive(name=writer.name, restored=0, created_at=clock.now(), **state))
    else:
        for name, value in state.items():
            setattr(recorded, name, value)
    await session.flush()
