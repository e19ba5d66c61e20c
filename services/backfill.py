"""The backfill service: makes the rollups equal to the messages.

A live transaction adds the same amount to the ledger and to the rollups. So a deficit, the sum of some messages less
their rollup, is the same in every snapshot, whatever live traffic does. It is read from one snapshot (`deficits`) and
then added, the way live usage is added.
"""

import asyncio
import functools
import logging
from collections.abc import Callable
from datetime import tzinfo
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import tenacity
from sqlalchemy import ColumnElement, func, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock, database_failures
from app.database import Database, T, Work, is_sqlite
from models import Message, UserMonthlyTokenUsage
from services import (
    adoption,
    comparisons,
    deficits,
    in_order,
    key_ranges,
    rollup_corrections,
    rollups,
    stored_settings,
    usage_zone,
)
from services.adoption import Shape
from services.comparisons import Difference, Pairs, Report
from services.deficits import KeyRange
from services.key_ranges import BEFORE_ANY_ID, Scope, Size
from services.pace import Pace

__all__ = ["Difference", "Listener", "Progress", "Report", "Scope", "is_due", "redate", "run"]

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 1_000
_FULL_RUN, _BEGUN = "last_full_backfill", "begun"
_ADVISORY_LOCK = 7_102_024_002
_COUNTING_SECONDS = 0.1
_ADOPTING_SECONDS = {"sqlite": 0.1, "postgresql": 0.5}  # on PostgreSQL nobody waits for rows that only the script knows
_LEAST_MESSAGES, _MOST_MESSAGES = 500, 50_000
READERS, MOST_READ = 2, 60_000
"""So many connections look at ranges at once, of so many messages each."""


class Progress(NamedTuple):
    """Where a run stands: so many of so many messages. What was done so far is committed."""

    phase: str
    done: int
    total: int


Listener = Callable[[Progress], None]
"""Is told of every transaction that was committed; what it raises ends the run there."""


async def run(database: Database, scope: Scope, batch_size: int, zone: ZoneInfo, listener: Listener) -> Report:
    """Adopts old rows, then sets the rollups of the scope right, a range of users and months a transaction.

    Safe beside live traffic and beside other runs, safe to be killed at any point; run again, it finds nothing to do.
    The database must be at the newest schema.

    Raises:
        ConfigurationError: the messages were dated by another zone.
    """
    report = Report()
    shape = await database.read(adoption.shape_of)
    await _PATIENTLY(database.transaction)(functools.partial(_note_begin, zone=zone), repeatable=True)
    await _adopt(database, shape, scope, zone, report, listener)
    await _count(database, scope, batch_size, report, listener)
    if scope == Scope():
        await _PATIENTLY(database.transaction)(_note_full_run, repeatable=True)
    return report


async def _count(database: Database, scope: Scope, batch_size: int, report: Report, listener: Listener) -> None:
    pace = _pace(database, 20_000, _MOST_MESSAGES, _COUNTING_SECONDS)
    size, total = Size(batch_size, pace.rows), await to_count(database, scope)
    only_one = asyncio.Lock()
    even = True  # where one range was, the next is looked at before anybody has to wait for it

    async def set_right(_reader: int, key_range: KeyRange) -> Pairs:
        nonlocal even
        pairs, even = await _set_right(database, key_range, pace, even, only_one)
        size.messages = MOST_READ if even else pace.rows
        return pairs

    def take(_key_range: KeyRange, pairs: Pairs) -> None:
        report.count(pairs)
        listener(Progress("counting", report.messages, max(report.messages, total)))

    await in_order.work_through(key_ranges.cover(database, scope, size), range(READERS), set_right, take)


async def is_due(session: AsyncSession) -> bool:
    """Whether there are messages of an earlier backend, and nobody ran this over all of them yet."""
    noted = await stored_settings.read(session, _FULL_RUN)
    if noted is not None:
        return noted == _BEGUN
    old = select(Message.id).where(Message.id >= adoption.LOWEST_ID, Message.user_id.is_(None)).limit(1)
    return await session.scalar(old) is not None


async def _note_begin(session: AsyncSession, zone: ZoneInfo) -> None:
    await usage_zone.check(session, zone)
    if await is_due(session):  # also when all is adopted, and the rest was broken off
        await stored_settings.store(session, _FULL_RUN, _BEGUN)


async def _note_full_run(session: AsyncSession) -> None:
    await stored_settings.store(session, _FULL_RUN, clock.now().isoformat())


def _pace(database: Database, rows: int, most: int, seconds: float) -> Pace:
    return Pace(rows, _LEAST_MESSAGES, most, seconds, breathes=database.engine.dialect.name == "sqlite")


async def redate(database: Database, zone: ZoneInfo, listener: Listener) -> int:
    """Dates every counted message by this zone and moves its usage to its month; returns how many changed their day.

    The rollup equals the messages at every commit. Servers that still run with another zone must be stopped before.
    """
    counted = select(func.count()).where(Message.usage_date.is_not(None))
    total = await database.scalar(counted) or 0
    await _exclusively(database, functools.partial(usage_zone.begin_redating, zone=zone))
    after_id, done, redated = BEFORE_ANY_ID, 0, 0
    while True:
        work = functools.partial(usage_zone.redate_batch, after_id=after_id, zone=zone)
        batch = await _exclusively(database, work)
        if batch is None:
            return redated
        after_id, done, redated = batch.last_id, done + batch.rows, redated + batch.redated
        listener(Progress("redating", done, max(done, total)))


async def _adopt(
    database: Database, shape: Shape, scope: Scope, zone: tzinfo, report: Report, listener: Listener
) -> None:
    total = await database.read(functools.partial(adoption.count, shape=shape, users=scope.users))
    seconds = _ADOPTING_SECONDS[database.engine.dialect.name]
    pace = _pace(database, adoption.BATCH_ROWS, 20 * adoption.BATCH_ROWS, seconds)
    after_id, done = BEFORE_ANY_ID, 0
    while True:
        work = functools.partial(
            adoption.adopt_batch, shape=shape, users=scope.users, after_id=after_id, zone=zone, limit=pace.rows
        )
        batch = await _exclusively(database, work, pace)
        if batch is None:
            return
        after_id, done = batch.last_id, done + batch.rows
        report.skipped += batch.skipped
        listener(Progress("adopting", done, max(done, total)))


async def to_count(database: Database, scope: Scope) -> int:
    """How many messages there are, for the progress; as the rollup says where it was filled once."""
    since, until = scope.days()
    statement = select(func.count()).select_from(Message).where(Message.usage_date.between(since, until))
    owner: ColumnElement[Any] = Message.user_id.expression
    if not await database.read(is_due):
        month = UserMonthlyTokenUsage
        within = tuple_(month.year, month.month).between((since.year, since.month), (until.year, until.month))
        statement = select(func.sum(month.message_count)).where(within)
        owner = month.user_id.expression
    of_users = owner > BEFORE_ANY_ID if scope.users is None else owner.in_(scope.users)
    return int(await database.scalar(statement.where(of_users)) or 0)


async def _exclusively(database: Database, work: Work[T], pace: Pace | None = None) -> T:
    """Runs the work in a transaction while no other run is in one; all of it again after a deadlock or an outage.

    Where others hold a lock for long, it steps back from the queue, so that nobody waits behind it, and asks again.
    """

    async def locked(session: AsyncSession) -> T:
        await _become_the_only_run(session)
        if pace:
            await _begin(session, pace)
        return await work(session)

    result = await _PATIENTLY(database.transaction)(locked, repeatable=True)
    if pace:
        pace.end()
        await pace.breathe()
    return result


async def _begin(session: AsyncSession, pace: Pace) -> None:
    pace.begin()
    if is_sqlite(session):
        pace.see(await session.scalar(text("PRAGMA data_version")) or 0)


_PATIENTLY = tenacity.retry(
    retry=tenacity.retry_if_exception(database_failures.is_conflict),
    wait=tenacity.wait_fixed(1),
    stop=tenacity.stop_after_delay(3600),
    before_sleep=lambda _: logger.warning("others hold a lock: trying again"),
    reraise=True,
)


async def _become_the_only_run(session: AsyncSession) -> None:
    """Waits until no other run is in a transaction of this kind: two would add the same deficit twice.

    A statement of its own, before the one that compares: that one's snapshot must be taken after the lock was got. On
    SQLite the transaction is the only writing one already.
    """
    if not is_sqlite(session):
        await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})


async def _set_right(
    database: Database, key_range: KeyRange, pace: Pace, look_first: bool, only_one: asyncio.Lock
) -> tuple[Pairs, bool]:
    """Sets the rollups of a range right; answers with its months as they were, and whether all of it was right before.

    Where that is expected it looks first, and nobody has to wait: a deficit is the same in every snapshot.
    """
    if look_first:
        found = await _PATIENTLY(database.read)(functools.partial(deficits.read, key_range=key_range))
        pairs = comparisons.pairs_of(found)
        if all(pair.is_even for pair in pairs.values()) and len(pairs) == len(found):
            return pairs, True
    async with only_one:
        return await _exclusively(database, functools.partial(_even_out, key_range=key_range, pace=pace), pace)


async def _even_out(session: AsyncSession, key_range: KeyRange, pace: Pace) -> tuple[Pairs, bool]:
    pairs = comparisons.pairs_of(await deficits.collect(session, key_range))
    if not is_sqlite(session):
        pace.begin()  # while it only read, nobody waited
    changed = await deficits.apply(session)
    await _apply_to_months(session, {key: pair for key, pair in pairs.items() if not pair.is_too_costly})
    return pairs, not changed and all(pair.is_even for pair in pairs.values())


async def _apply_to_months(session: AsyncSession, pairs: Pairs) -> None:
    """Adds the deficits: to months that are missing as live usage is added, to the others whatever the sign."""
    await rollups.add_months(session, {key: pair.expected for key, pair in pairs.items() if pair.is_missing})
    await rollup_corrections.adjust_months(session, {key: pair.deficit for key, pair in pairs.items() if pair.is_wrong})
