"""Bringing a database up to date: Alembic's revisions, under a lock, safely when several processes start at once."""

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app import database_urls
from app.database import READ_ONLY, Database
from app.errors import ConfigurationError

logger = logging.getLogger(__name__)

_SCRIPTS = Path(__file__).resolve().parent.parent / "alembic"
_ADVISORY_LOCK = 7_102_024_001
_LOCK_POLL_SECONDS = 0.2
_LOCK_ATTEMPTS = 20
_SQLITE_WAIT_SECONDS = 600


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return config


def head() -> str:
    """The newest revision that this code knows."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise RuntimeError(f"no revisions in {_SCRIPTS}")
    return revision


def revision_of(connection: Connection) -> str | None:
    """The revision at which a database is; None where it never was brought up to date."""
    return MigrationContext.configure(connection).get_current_revision()


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
        if database_urls.parse(url).drivername == "sqlite":
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
    path = database_urls.parse(url).database
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
    cursor.execute(f"PRAGMA busy_timeout = {_SQLITE_WAIT_SECONDS * 1000}")
    cursor.close()


def _enable_wal(path: str) -> None:
    # Persistent in the file. SQLite's busy handler does not cover this switch, so other starters are waited for here.
    deadline = time.monotonic() + _SQLITE_WAIT_SECONDS
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
        if await is_current(database):
            return
        async with database.engine.connect() as connection:
            guard = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await _wait_for_lock(guard)
            try:
                await _run_with_retries(database)
            finally:
                await guard.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _ADVISORY_LOCK})
    finally:
        await database.close()


async def _wait_for_lock(guard: AsyncConnection) -> None:
    # Asked again and again instead of waited for inside a statement: such a wait holds a snapshot, and the concurrent
    # index build of the process that has the lock would wait for that snapshot for ever.
    ask = text("SELECT pg_try_advisory_lock(:key)")
    while not await guard.scalar(ask, {"key": _ADVISORY_LOCK}):  # noqa: ASYNC110
        await asyncio.sleep(_LOCK_POLL_SECONDS)


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
