"""The backfill service: adopts the messages of an earlier backend, and makes the rollups equal to all messages."""

import functools
from datetime import tzinfo
from zoneinfo import ZoneInfo

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import Database
from models import Message
from services import adoption, exclusive, full_runs, reconciliation, usage_zone
from services.adoption import OldRows, Shape
from services.comparisons import Difference, Report
from services.exclusive import Mark
from services.key_ranges import Scope, lowest_id
from services.pace import Pace
from services.progress import Listener, Progress

__all__ = ["Difference", "Listener", "Progress", "Report", "Scope", "redate", "run"]

DEFAULT_BATCH_SIZE = 1_000
LEAST_ROWS, MOST_BATCHES = 500, 60
"""Of a batch at least so many rows, at most so many times those of the first."""
ADOPTING_SECONDS = {"sqlite": 0.1, "postgresql": 0.5}
"""So long others may have to wait for a batch; on PostgreSQL nobody waits for rows that only the script knows."""


async def run(database: Database, scope: Scope, batch_size: int, zone: ZoneInfo, listener: Listener) -> Report:
    """Adopts old rows, then sets the rollups of the scope right, a range of users and months a transaction.

    Safe beside live traffic and beside other runs, safe to be killed at any point; run again, it finds nothing to do.
    The database must be at the newest schema.

    Raises:
        ConfigurationError: the messages were dated by another zone.
    """
    report = Report()
    shape = await database.read(adoption.shape_of)
    await database.transaction(functools.partial(full_runs.note_begin, zone=zone), repeatable=True)
    await _adopt(database, shape, scope, zone, report, listener)
    await reconciliation.reconcile(database, scope, batch_size, report, listener)
    if scope == Scope():
        await database.transaction(full_runs.note_end, repeatable=True)
    return report


async def _adopt(
    database: Database, shape: Shape, scope: Scope, zone: tzinfo, report: Report, listener: Listener
) -> None:
    total = await database.read(functools.partial(adoption.count, shape=shape, users=scope.users))
    rows, seconds = adoption.BATCH_ROWS, ADOPTING_SECONDS[database.engine.dialect.name]
    after_id, done = lowest_id(database), 0
    old = OldRows(shape, scope.users, zone)
    pace_of_it = Pace.on(database, rows, LEAST_ROWS, MOST_BATCHES * rows, seconds)
    async with pace_of_it as pace, database.engine.connect() as connection:
        while True:
            ahead = None
            if pace.is_alone:  # beside others it would be looked at again, while they wait
                look_ahead = functools.partial(adoption.look_ahead, old=old, after_id=after_id, limit=pace.rows)
                ahead = await database.read(look_ahead, on=connection)
            await pace.breathe()
            adopt = functools.partial(adoption.adopt_batch, old=old, after_id=after_id, limit=pace.rows, ahead=ahead)
            batch = await exclusive.transaction(database, adopt, pace, on=connection)
            if batch is None:
                return
            after_id, done = batch.last_id, done + batch.rows
            report.skipped += batch.skipped
            listener(Progress("adopting", done, max(done, total)))


async def redate(database: Database, zone: ZoneInfo, listener: Listener) -> int:
    """Dates every counted message by this zone and moves its usage to its month; returns how many changed their day.

    The rollup equals the messages at every commit. Servers that still run with another zone must be stopped before.
    """
    counted = select(func.count()).where(Message.usage_date.is_not(None))
    total = await database.scalar(counted) or 0
    await exclusive.transaction(database, functools.partial(usage_zone.begin_redating, zone=zone))
    mark = Mark()
    after_id, done, redated = lowest_id(database), 0, 0

    async def redate_batch(session: AsyncSession) -> usage_zone.Batch | None:
        await mark.take(session)  # what another run has read does not hold any more
        return await usage_zone.redate_batch(session, after_id, zone)

    while True:
        batch = await exclusive.transaction(database, redate_batch)
        if batch is None:
            return redated
        after_id, done, redated = batch.last_id, done + batch.rows, redated + batch.redated
        listener(Progress("redating", done, max(done, total)))
