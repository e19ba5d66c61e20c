"""Serialize backfill runs: only one may write corrections at a time, or a deficit would be added twice."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.database import Database, T, Work, is_sqlite
from services.backfill.throttle import Pace

_ADVISORY_LOCK = 7_102_024_002


async def transaction(database: Database, work: Work[T], pace: Pace | None = None) -> T:
    """Run the work in a transaction that no other run is in; all of it again after a deadlock or an outage.

    Live writers wait only for the rows that the work writes; on SQLite, for the whole transaction.

    Args:
        database: where.
        work: as of `Database.transaction`, with `repeatable`. What it reads, it reads after the lock was acquired.
        pace: learns how long the transaction took.
    """

    async def locked(session: AsyncSession) -> T:
        # A statement of its own, before any that compares: their snapshots must be later than the lock. On SQLite the
        # transaction is the only writing one already.
        if not is_sqlite(session):
            await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        if pace:
            pace.begin()
        return await work(session)

    result = await database.transaction(locked, repeatable=True)
    if pace:
        pace.end()
    return result
