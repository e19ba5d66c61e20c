"""Several sessions that read the same moment of a database, so that they can share what one would read for long."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import Database, is_sqlite


@asynccontextmanager
async def open_same(database: Database, count: int) -> AsyncIterator[Sequence[AsyncSession]]:
    """Sessions, each in a transaction that only reads, in which all of them see the same until the end.

    Writers do not wait for them, nor they for writers; on SQLite in WAL mode only.
    """
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(database.reads()) for _ in range(count)]
        first, *others = sessions
        if is_sqlite(first):
            await _begin_on_sqlite(first, others)
        else:
            await _begin_on_postgresql(first, others)
        yield sessions


async def _begin_on_postgresql(first: AsyncSession, others: Sequence[AsyncSession]) -> None:
    for session in (first, *others):
        await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    if others:
        snapshot = await first.scalar(text("SELECT pg_export_snapshot()"))
        for session in others:  # it cannot be a parameter; it is PostgreSQL's own word, of digits and dashes
            await session.execute(text(f"SET TRANSACTION SNAPSHOT '{snapshot}'"))


async def _begin_on_sqlite(first: AsyncSession, others: Sequence[AsyncSession]) -> None:
    # The version tells a connection whether others have committed since it asked last; asking begins the reading. If it
    # is the same before and after the others have begun, nothing was committed in between.
    version = await first.scalar(_VERSION)
    while others:
        for session in others:
            await session.rollback()
            await session.scalar(_VERSION)
        await first.rollback()
        before, version = version, await first.scalar(_VERSION)
        if version == before:
            return


_VERSION = text("PRAGMA data_version")
