"""The backfill service: adopts the messages of an earlier backend, and makes the rollups equal to all messages."""

import functools
from collections.abc import Collection
from dataclasses import replace
from datetime import tzinfo
from zoneinfo import ZoneInfo

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.database import Database
from models import Message, User
from services.backfill import adoption, full_runs, old_months, reconciliation, run_lock
from services.backfill.adoption import OldRows, Shape
from services.backfill.comparisons import Policy, Report
from services.backfill.key_ranges import Scope, lowest_id
from services.backfill.progress import Listener, Progress
from services.backfill.throttle import Pace
from services.usage import time_zone

DEFAULT_BATCH_SIZE = 1_000
LEAST_ROWS, MOST_BATCHES = 500, 60
"""The fewest rows of a batch, and how many times the rows of the first batch it has at most."""
ADOPTING_SECONDS = {"sqlite": 0.1, "postgresql": 0.5}
"""The target length of a batch. On PostgreSQL no writer waits for rows that only the script knows."""


async def run(
    database: Database, scope: Scope, batch_size: int, zone: ZoneInfo, policy: Policy, listener: Listener
) -> Report:
    """Adopt old rows, then repair the rollups of the scope, one range of users and months per transaction.

    Safe while traffic and other runs go on, and safe to be killed at any point; run again, it finds nothing to do. The
    database must be at the newest schema. Only a run over everything, after the last of which an earlier backend's
    months are settled, ends carrying over.

    Raises:
        ConfigurationError: the messages were dated in another time zone.
    """
    report = Report()
    shape = await database.read(adoption.shape_of)
    await database.transaction(functools.partial(full_runs.note_begin, zone=zone), repeatable=True)
    await _adopt(database, shape, scope, zone, report, listener)
    policy = await _refined(database, shape, scope, zone, policy)
    await reconciliation.reconcile(database, scope, batch_size, policy, report, listener)
    if scope == Scope():
        await database.transaction(full_runs.note_end, repeatable=True)
    return report


async def _refined(database: Database, shape: Shape, scope: Scope, zone: tzinfo, policy: Policy) -> Policy:
    """The policy, with what the database says about an earlier backend's months."""
    if not (policy.carry_over and await database.read(full_runs.has_old_months)):
        return replace(policy, carry_over=False)
    work = functools.partial(old_months.differences, shape=shape, users=scope.users, zone=zone)
    return replace(policy, explained=await database.read(work))


async def _adopt(
    database: Database, shape: Shape, scope: Scope, zone: tzinfo, report: Report, listener: Listener
) -> None:
    total = await database.read(functools.partial(adoption.count, shape=shape, users=scope.users))
    rows, seconds = adoption.BATCH_ROWS, ADOPTING_SECONDS[database.engine.dialect.name]
    pace = Pace.on(database, rows, LEAST_ROWS, MOST_BATCHES * rows, seconds)
    old = OldRows(shape, scope.users, zone)
    after_id, done = lowest_id(database), 0
    while True:
        await pace.pause()
        adopt = functools.partial(adoption.adopt_batch, old=old, after_id=after_id, limit=pace.rows)
        batch = await run_lock.transaction(database, adopt, pace)
        if batch is None:
            return
        after_id, done = batch.last_id, done + batch.rows
        report.skipped += batch.skipped
        listener(Progress("adopting", done, max(done, total)))


async def unknown_users(database: Database, wanted: Collection[int]) -> list[int]:
    """Those of the wanted ids that no user has; of an old database, too."""
    if not wanted:
        return []

    async def work(session: AsyncSession) -> list[int]:
        shape = await adoption.shape_of(session)
        present = set(await session.scalars(select(User.id).where(User.id.in_(wanted)))) if shape.has_messages else ()
        return [user_id for user_id in wanted if user_id not in present]

    return await database.read(work)


async def redate(database: Database, zone: ZoneInfo, listener: Listener) -> int:
    """Dates every counted message by this zone and moves its usage to its month; returns how many changed their day.

    The rollup equals the messages at every commit. Servers that still run with another zone must be stopped before.
    """
    counted = select(func.count()).where(Message.usage_date.is_not(None))
    total = await database.scalar(counted) or 0
    await run_lock.transaction(database, functools.partial(time_zone.begin_redating, zone=zone))
    after_id, done, redated = lowest_id(database), 0, 0

    while True:
        work = functools.partial(time_zone.redate_batch, after_id=after_id, zone=zone)
        batch = await run_lock.transaction(database, work)
        if batch is None:
            return redated
        after_id, done, redated = batch.last_id, done + batch.rows, redated + batch.redated
        listener(Progress("redating", done, max(done, total)))
