"""Adopt messages of an earlier backend, and make the rollups correct."""

import functools
from collections.abc import Collection
from zoneinfo import ZoneInfo

from sqlalchemy import func, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.console import Listener, Progress
from app.db.database import Database
from models import Message, User
from services.backfill import adoption, key_ranges, old_rows, plans, reconciliation, transactions
from services.backfill.key_ranges import Scope
from services.backfill.old_rows import OldRows
from services.backfill.plans import Policy
from services.backfill.report import Report
from services.backfill.transactions import Throttle
from services.usage import full_runs, time_zone

DEFAULT_BATCH_SIZE = 1_000
LEAST_ROWS, MOST_BATCHES = 500, 60
"""The minimum number of rows of a batch, and the maximum as a multiple of the first batch."""
# Target seconds of a batch. On PostgreSQL, no writer waits for old rows, because only the script writes them.
ADOPTING_SECONDS = {"sqlite": 0.1, "postgresql": 0.5}


async def run(
    database: Database, scope: Scope, batch_size: int, zone: ZoneInfo, policy: Policy, listener: Listener
) -> Report:
    """Adopt old rows, then repair the rollups of the scope.

    Each range of users and months is repaired in one transaction. A run is safe concurrently with traffic and other
    runs, and may be killed at any point; a second run finds nothing to do. The database must have the newest schema.
    Carrying over ends with a run over all users and months, which settles an earlier backend's months.

    Raises:
        ConfigurationError: the messages were dated in another time zone.
    """
    report = Report()
    old = await database.read(functools.partial(old_rows.find, users=scope.users, zone=zone))
    await database.transaction(functools.partial(full_runs.note_begin, zone=zone), repeatable=True)
    await _adopt(database, old, report, listener)
    policy = await database.read(functools.partial(plans.refined, policy=policy, old=old))
    await reconciliation.reconcile(database, scope, batch_size, policy, report, listener)
    if scope == Scope():
        await database.transaction(full_runs.note_end, repeatable=True)
    return report


async def _adopt(database: Database, old: OldRows, report: Report, listener: Listener) -> None:
    total = await database.read(functools.partial(old_rows.count, old=old))
    rows, seconds = old_rows.BATCH_ROWS, ADOPTING_SECONDS[database.engine.dialect.name]
    throttle = Throttle.on(database, rows, LEAST_ROWS, MOST_BATCHES * rows, seconds)
    after_id, done = key_ranges.lowest_id(database), 0
    while True:
        adopt = functools.partial(adoption.adopt_batch, old=old, after_id=after_id, limit=throttle.rows)
        batch = await transactions.run(database, adopt, throttle)
        if batch is None:
            return
        after_id, done = batch.last_id, done + batch.rows
        report.skipped += batch.skipped
        listener(Progress("adopting", done, max(done, total)))


async def unknown_users(database: Database, wanted: Collection[int]) -> list[int]:
    """Return the wanted ids that no user has.

    The database may be an old one.
    """
    if not wanted:
        return []

    async def work(session: AsyncSession) -> list[int]:
        if not await (await session.connection()).run_sync(lambda connection: inspect(connection).has_table("users")):
            return list(wanted)
        present = set(await session.scalars(select(User.id).where(User.id.in_(wanted))))
        return [user_id for user_id in wanted if user_id not in present]

    return await database.read(work)


async def redate(database: Database, zone: ZoneInfo, listener: Listener) -> int:
    """Date every counted message in this time zone, and move its usage.

    The rollup equals the messages at every commit. Stop servers that run with another time zone first.

    Returns:
        How many messages changed their day.
    """
    counted = select(func.count()).where(Message.usage_date.is_not(None))
    total = await database.scalar(counted) or 0
    await transactions.run(database, functools.partial(time_zone.begin_redating, zone=zone))
    after_id, done, redated = key_ranges.lowest_id(database), 0, 0
    while True:
        work = functools.partial(time_zone.redate_batch, after_id=after_id, zone=zone)
        batch = await transactions.run(database, work)
        if batch is None:
            return redated
        after_id, done, redated = batch.last_id, done + batch.rows, redated + batch.redated
        listener(Progress("redating", done, max(done, total)))
