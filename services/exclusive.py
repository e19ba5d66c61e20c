"""One run at a time: what corrects the rollups does so in transactions that no other run is beside.

Two that add the same deficit would count it twice. So a run holds a lock while it writes, and a mark in the database
tells it whether another one has written since it read.
"""

import secrets

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.database import Database, T, Work, is_sqlite
from services import stored_settings
from services.pace import Pace

_ADVISORY_LOCK = 7_102_024_002
_MARK = "last_run_to_correct"


async def transaction(
    database: Database, work: Work[T], pace: Pace | None = None, on: AsyncConnection | None = None
) -> T:
    """Runs the work in a transaction while no other run is in one; all of it again after a deadlock or an outage.

    Args:
        database: where.
        work: as of `Database.transaction`, with `repeatable`.
        pace: is told how long others had to wait.
        on: the connection, if it must be a certain one.
    """

    async def locked(session: AsyncSession) -> T:
        # A statement of its own, before any that compares: their snapshots must be taken after the lock was got. On
        # SQLite the transaction is the only writing one already.
        if not is_sqlite(session):
            await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        if pace:
            pace.begin()
        return await work(session)

    result = await database.transaction(locked, repeatable=True, on=on)
    if pace:
        await pace.end()
    return result


class Mark:
    """A run's word in the database, by which it sees whether another run wrote between its reading and its writing.

    A run puts a new word of its own in the place of another's before it writes, and none comes back once it was
    replaced. So where the same word was found before the reading and in the writing transaction, and it is the run's
    own, no other run has written in between.
    """

    def __init__(self) -> None:
        self._own: str | None = None

    async def find(self, session: AsyncSession) -> str | None:
        """The word as it is, to be found before the reading."""
        return await stored_settings.read(session, _MARK)

    async def take(self, session: AsyncSession, found_before: str | None = None) -> bool:
        """Whether no other run has written since that was found; from now on the word is this run's.

        In a `transaction` of this module's, before it writes.
        """
        found = await self.find(session)
        if found is None or found != self._own:
            self._own = secrets.token_hex(8)
            await stored_settings.store(session, _MARK, self._own)
            return False
        return found == found_before
