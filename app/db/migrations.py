"""Bringing a database up to date: Alembic's revisions, under a lock, safely when several processes start at once."""

import asyncio
import contextlib
import functools
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app import BASE_DIR
from app.db import sequences, urls
from app.db.database import READ_ONLY, Database, T
from app.db.failures import PoolerTimeout
from app.errors import ConfigurationError

logger = logging.getLogger(__name__)

_SCRIPTS = BASE_DIR / "alembic"
_ADVISORY_LOCK = 7_102_024_001
# Seconds between two attempts to get the lock.
_LOCK_POLL_SECONDS = 0.2
_IDLE_LIMITS = text(
    "SELECT name FROM pg_settings WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')"
)
_LOCK_ATTEMPTS = 20
# Seconds that a process waits for others: for SQLite's lock, or for a connection to the server through a full pooler.
_WAIT_SECONDS = 600


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return config


@functools.cache
def head() -> str:
    """The newest revision that this code knows."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise RuntimeError(f"no revisions in {_SCRIPTS}")
    return revision


def revision_of(connection: Connection) -> str | None:
    """The revision at which a database is; None where it never was brought up to date."""
    return MigrationContext.configure(connection).get_current_revision()


def refuse_outdated(connection: Connection) -> None:
    """Refuse a database that an older version of this backend made; one of the earlier backend passes.

    Raises:
        ConfigurationError: its schema is not the newest.
    """
    if revision_of(connection) not in (None, head()):
        raise ConfigurationError("the schema is not the newest: start the server, or run the script without this flag")


async def is_current(database: Database) -> bool:
    """Whether the database is at the newest schema; raises what the driver raises when it cannot be asked."""
    async with database.engine.connect() as connection:
        connection = await connection.execution_options(**{READ_ONLY: True})
        return await connection.run_sync(revision_of) == head()


async def upgrade(url: str) -> None:
    """Makes what is missing, adopts what is there, and returns when the database is at the newest schema.

    One process does the work; others that call this at the same time wait for it. Safe to be killed and repeated.

    Raises:
        ConfigurationError: the tables are not of this product, or the database is newer than this code.
    """
    try:
        if urls.parse(url).drivername == "sqlite":
            await _upgrade_sqlite(url)
        else:
            await _upgrade_postgresql(url)
    except CommandError as error:
        raise ConfigurationError(f"the database cannot be brought up to date: {error}") from None


def _run(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def _upgrade_sqlite(url: str) -> None:
    path = urls.parse(url).database
    await asyncio.to_thread(_enable_wal, str(path))
    database = Database.open(url)
    try:
        if await is_current(database):
            return
        async with database.engine.connect() as connection:
            # Tables are recreated with foreign keys off, as SQLite's documentation says; only outside a transaction.
            await connection.run_sync(prepare_for_recreating)
            logger.info("bringing the database up to date")
            async with connection.begin():  # BEGIN IMMEDIATE: the lock under which one process works
                await connection.run_sync(_run)
    finally:
        await database.close()


def prepare_for_recreating(connection: Connection) -> None:
    """Sets up a SQLite connection, which must not be in a transaction, for revisions that recreate tables."""
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA foreign_keys = OFF")
    cursor.execute(f"PRAGMA busy_timeout = {_WAIT_SECONDS * 1000}")
    cursor.close()


def _enable_wal(path: str) -> None:
    # Persistent in the file. SQLite's busy handler does not cover this switch, so other starters are waited for here.
    deadline = time.monotonic() + _WAIT_SECONDS
    _make_private(path)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        while True:
            try:
                if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                    logger.warning("%s cannot be in WAL mode: whoever reads waits for whoever writes", path)
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
                if not busy or time.monotonic() > deadline:
                    raise
                time.sleep(_LOCK_POLL_SECONDS)
    finally:
        connection.close()


def _make_private(path: str) -> None:
    """Make the file for its owner alone, if it is missing; SQLite gives `-wal` and `-shm` the same mode."""
    with contextlib.suppress(OSError):  # it exists; or SQLite says why it cannot be made
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))


async def _upgrade_postgresql(url: str) -> None:
    database = Database.open(url)
    try:
        if await _patiently(lambda: _is_in_order(database)):
            return
        async with alone(database):
            if not await is_current(database):
                await _run_with_retries(database)
            await sequences.advance(database)
    finally:
        await database.close()


async def _is_in_order(database: Database) -> bool:
    return await is_current(database) and not await sequences.behind(database)


@asynccontextmanager
async def alone(database: Database) -> AsyncIterator[None]:
    """Waits until no other process changes this PostgreSQL database's schema, and then makes others wait.

    The lock belongs to a transaction, since behind a pooler no session belongs to a client. So what runs meanwhile
    needs a second connection to the server.

    Raises:
        PoolerTimeout: a pooler has no server connection free for it.
    """
    while (guard := await _patiently(lambda: _try_lock(database))) is None:
        # Closed while this process waits: in session mode a pooler would keep a server connection for it.
        await database.engine.dispose()
        await asyncio.sleep(_LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        await guard.close()


async def _try_lock(database: Database) -> AsyncConnection | None:
    async with AsyncExitStack() as stack:
        guard = await stack.enter_async_context(database.engine.connect())
        # Without waiting inside the statement: an index that the lock's holder builds would wait for its snapshot.
        if not await guard.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK}):
            return None
        await _stay_open(guard)
        stack.pop_all()
        return guard


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Repeats the work while another process that changes the schema holds the pooler's server connections."""
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
    # Its own statement releases the last snapshot, which a concurrent index build would wait for.
    await guard.execute(text("SET LOCAL lock_timeout = 0"))


async def _run_with_retries(database: Database) -> None:
    for attempt in range(1, _LOCK_ATTEMPTS + 1):
        try:
            async with database.engine.connect() as connection:
                logger.info("bringing the database up to date")
                await connection.run_sync(_run)
                await connection.commit()
            return
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03" or attempt == _LOCK_ATTEMPTS:  # lock_not_available
                raise
            logger.warning("a table is locked by others; trying again (%d of %d)", attempt, _LOCK_ATTEMPTS)
            await asyncio.sleep(attempt * _LOCK_POLL_SECONDS)
