"""Serialize backfill runs, so that no deficit is added twice."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.database import Database, T, Work, is_sqlite
from services.backfill.throttle import Throttle

_ADVISORY_LOCK = 7_102_024_002


async def transaction(database: Database, work: Work[T], throttle: Throttle | None = None) -> T:
    """Run the work in a transaction, while no other run has one.

    The whole transaction is retried after a deadlock or an outage. Live writers wait only for the rows that the work
    writes; on SQLite, they wait for the whole transaction.

    Args:
        database: the database to write to.
        work: the work, repeatable as in `Database.transaction`. Its reads follow the acquisition of the lock.
        throttle: measures how long the transaction takes.
    """

    async def locked(session: AsyncSession) -> T:
        # A separate statement before every comparison: the snapshots of comparisons must be later than the lock. On
        # SQLite, only one transaction can write at a time anyway.
        if not is_sqlite(session):
            await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        if throttle:
            throttle.begin()
        return await work(session)

    result = await database.transaction(locked, repeatable=True)
    if throttle:
        throttle.end()
    return result
