"""Open several sessions on one snapshot, to share a long read."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.db import postgresql_connections
from app.db.database import DATA_VERSION, Database
from app.db.engines import READ_ONLY

_ATTEMPTS = 20


@asynccontextmanager
async def open_same(database: Database, count: int) -> AsyncIterator[Sequence[AsyncSession]]:
    """Open read-only sessions that all see the same snapshot.

    Neither writers nor these sessions wait for each other; on SQLite in WAL mode only.

    Args:
        database: the database to read.
        count: the maximum number of sessions. Behind a pooler there is one, since each would block a server connection
            for all other clients. On SQLite there is one if other processes keep writing, or might.
    """
    is_sqlite = database.engine.dialect.name == "sqlite"
    isolation = {} if is_sqlite else {"isolation_level": "REPEATABLE READ"}
    begin = _begin_on_sqlite if is_sqlite else _begin_on_postgresql
    async with AsyncExitStack() as stack:
        connections: list[AsyncConnection] = []
        while len(connections) < count:
            connection = await stack.enter_async_context(database.engine.connect())
            connections.append(await connection.execution_options(**{READ_ONLY: True}, **isolation))
            if not is_sqlite and await postgresql_connections.is_pooled(connection):
                break
        same = await begin(*connections)
        yield [await stack.enter_async_context(AsyncSession(connection)) for connection in same]


async def _begin_on_postgresql(first: AsyncConnection, *others: AsyncConnection) -> list[AsyncConnection]:
    snapshot = await first.scalar(text("SELECT pg_export_snapshot()"))
    for connection in others:  # it cannot be a parameter; it is PostgreSQL's own word, of digits and dashes
        await connection.execute(text(f"SET TRANSACTION SNAPSHOT '{snapshot}'"))
    return [first, *others]


async def _begin_on_sqlite(first: AsyncConnection, *others: AsyncConnection) -> list[AsyncConnection]:
    # The query starts the snapshot. If the number is the same before and after the other sessions have started theirs,
    # nothing was committed between.
    version = await first.scalar(DATA_VERSION)
    for _ in range(_ATTEMPTS):
        for connection in others:
            await connection.rollback()
            await connection.scalar(DATA_VERSION)
        await first.rollback()
        before, version = version, await first.scalar(DATA_VERSION)
        if version == before:
            return [first, *others]
    return [first]
