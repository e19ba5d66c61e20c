"""Migrate a database to the newest schema, under a lock.

Several processes may start at the same time: one runs Alembic's revisions, and the others wait.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import revisions, search_index, sequences
from app.db.database import Database, T
from app.db.failures import PoolerTimeout
from app.db.urls import Target
from app.errors import ConfigurationError

logger = logging.getLogger(__name__)

_ADVISORY_LOCK = 7_102_024_001
# Seconds between two attempts to acquire the lock.
_LOCK_POLL_SECONDS = 0.2
_IDLE_LIMITS = text(
    "SELECT name FROM pg_settings WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')"
)
_LOCK_ATTEMPTS = 20
# Seconds that a process waits for another one: for SQLite's lock, or for a server connection of a full pooler.
_WAIT_SECONDS = 600


async def upgrade(target: Target | str) -> None:
    """Migrate the database to the newest schema, and adopt existing tables.

    One process does the work; concurrent callers wait for it. A killed migration can be repeated.

    Raises:
        ConfigurationError: the tables belong to another product, or the database is newer than this code.
    """
    database = Database.open(target)
    is_sqlite = database.engine.dialect.name == "sqlite"
    try:
        await (_upgrade_sqlite if is_sqlite else _upgrade_postgresql)(database)
    finally:
        await database.close()


def _run(connection: Connection) -> None:
    from alembic import command  # 11 MiB, which most starts never need
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(revisions.SCRIPTS).replace("%", "%%"))
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        revisions.refuse_newer(revisions.revision_of(connection))
        raise ConfigurationError(f"the database cannot be migrated: {error}") from None


async def _upgrade_sqlite(database: Database) -> None:
    await asyncio.to_thread(_enable_wal, str(database.engine.url.database))
    if await revisions.is_current(database):
        return
    async with database.engine.connect() as connection:
        # SQLite requires foreign keys off while tables are recreated; the PRAGMA works only outside a transaction.
        await connection.run_sync(prepare_for_recreating)
        logger.info("migrating the database to the newest schema")
        async with connection.begin():  # BEGIN IMMEDIATE: the lock that keeps other processes out
            await connection.run_sync(_run)


def prepare_for_recreating(connection: Connection) -> None:
    """Prepare a SQLite connection for revisions that recreate tables.

    The connection must not be in a transaction.
    """
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA foreign_keys = OFF")
    cursor.execute(f"PRAGMA busy_timeout = {_WAIT_SECONDS * 1000}")
    cursor.close()


def _enable_wal(path: str) -> None:
    # The mode is stored in the file. SQLite's busy handler does not cover this switch, so the loop waits instead.
    deadline = time.monotonic() + _WAIT_SECONDS
    _make_private(path)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        while True:
            try:
                if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                    logger.warning("%s cannot use WAL mode: readers and writers block each other", path)
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
                if not busy or time.monotonic() > deadline:
                    raise
                time.sleep(_LOCK_POLL_SECONDS)
    finally:
        connection.close()


def _make_private(path: str) -> None:
    """Create a missing file with mode 0600, which SQLite copies to `-wal`."""
    with contextlib.suppress(OSError):  # the file exists, or SQLite reports later why it cannot be created
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))


async def _upgrade_postgresql(database: Database) -> None:
    if await _patiently(lambda: _is_in_order(database)):
        return
    async with alone(database):
        if not await revisions.is_current(database):
            await _run_with_retries(database)
            await search_index.build(database, logger.info, search_index.SMALL)
        await sequences.advance(database)


async def _is_in_order(database: Database) -> bool:
    return await revisions.is_current(database) and not await sequences.behind(database)


@asynccontextmanager
async def alone(database: Database) -> AsyncIterator[None]:
    """Hold the lock under which one process migrates a PostgreSQL database.

    The lock belongs to a transaction, since behind a pooler no session belongs to a client. So the migration itself
    needs a second connection to the server.

    Raises:
        PoolerTimeout: the pooler has no free server connection.
    """
    while (guard := await _patiently(lambda: _try_lock(database))) is None:
        # A pooler in session mode would reserve a server connection for this process while it waits.
        await database.engine.dispose()
        await asyncio.sleep(_LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        await guard.close()


async def _try_lock(database: Database) -> AsyncConnection | None:
    async with AsyncExitStack() as stack:
        guard = await stack.enter_async_context(database.engine.connect())
        # A statement that waits holds a snapshot, for which a concurrent index build of the lock's holder would wait.
        if not await guard.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK}):
            return None
        await _stay_open(guard)
        stack.pop_all()
        return guard


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Retry while a migrating process occupies the pooler's server connections."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            return await work()
        except PoolerTimeout as error:
            if time.monotonic() > deadline:
                raise
            logger.warning("%s; waiting", error)


async def _stay_open(guard: AsyncConnection) -> None:
    for name in await guard.scalars(_IDLE_LIMITS):
        await guard.execute(text(f"SET LOCAL {name} = 0"))
    # This statement releases the last snapshot, for which a concurrent index build would wait.
    await guard.execute(text("SET LOCAL lock_timeout = 0"))


async def _run_with_retries(database: Database) -> None:
    for attempt in range(1, _LOCK_ATTEMPTS + 1):
        try:
            async with database.engine.connect() as connection:
                logger.info("migrating the database to the newest schema")
                await connection.run_sync(_run)
                await connection.commit()
            return
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03" or attempt == _LOCK_ATTEMPTS:  # lock_not_available
                raise
            logger.warning("a table is locked by another session; retrying (%d of %d)", attempt, _LOCK_ATTEMPTS)
            await asyncio.sleep(attempt * _LOCK_POLL_SECONDS)
