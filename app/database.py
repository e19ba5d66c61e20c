"""The database layer: engines and sessions for SQLite and PostgreSQL that behave alike."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import asyncpg
from sqlalchemy import Connection, Table, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from app import database_urls
from app.errors import ConfigurationError

READ_ONLY = "foundation_read_only"
"""Execution option of connections that only read: on SQLite their transactions do not take the write lock."""

BUSY_TIMEOUT_SECONDS = 30
CONNECT_TIMEOUT_SECONDS = 10

FAILURES = (SQLAlchemyError, sqlite3.Error, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
"""What can be raised when a database is absent, refuses, or breaks off."""


@dataclass(frozen=True)
class Database:
    """An engine with two ways in: `sessions` for what writes, `reads` for what only reads."""

    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    reads: async_sessionmaker[AsyncSession]

    @classmethod
    def open(cls, url: str, **server_settings: str) -> Self:
        """Prepares a pool of connections; connects to nothing yet.

        Args:
            url: any form of `DATABASE_URL`.
            **server_settings: PostgreSQL's run-time settings for each session, such as `lock_timeout`.

        Raises:
            ValueError: the URL is of no database on which this product runs.
        """
        parsed = database_urls.parse(url)
        engine = (
            _sqlite_engine(parsed) if parsed.drivername == "sqlite" else _postgresql_engine(parsed, server_settings)
        )
        return cls(
            engine=engine,
            sessions=async_sessionmaker(engine, expire_on_commit=False),
            reads=async_sessionmaker(engine.execution_options(**{READ_ONLY: True}), expire_on_commit=False),
        )

    async def close(self) -> None:
        """Closes every connection of the pool."""
        await self.engine.dispose()


def _sqlite_engine(url: URL) -> AsyncEngine:
    engine = create_async_engine(
        url.set(drivername="sqlite+aiosqlite"),
        connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT_SECONDS},
    )
    event.listen(engine.sync_engine, "connect", _set_pragmas)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _set_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA secure_delete = ON")  # deleted content does not linger in free pages
    cursor.close()


def _begin(connection: Connection) -> None:
    # A deferred transaction that turns to writing fails with SQLITE_BUSY whatever the timeout: writers say so at once.
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _postgresql_engine(url: URL, server_settings: dict[str, str]) -> AsyncEngine:
    # asyncpg reads the URL itself, so that every parameter of libpq's URLs means what it means there.
    return create_async_engine(
        "postgresql+asyncpg://",
        connect_args={
            "dsn": url.render_as_string(hide_password=False),
            "timeout": CONNECT_TIMEOUT_SECONDS,
            "server_settings": {"timezone": "UTC", "application_name": "foundation-be", **server_settings},
        },
        isolation_level="READ COMMITTED",
        pool_size=10,
        max_overflow=10,
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
    )


def insert(session: AsyncSession, model: type[DeclarativeBase] | Table) -> postgresql.Insert:
    """An INSERT that knows ON CONFLICT, in the dialect of the session; both dialects share the methods used here."""
    if session.get_bind().dialect.name == "sqlite":
        return sqlite.insert(model)  # type: ignore[return-value]
    return postgresql.insert(model)


def missing_file(url: str) -> Path | None:
    """The path of a SQLite database that does not exist, or None."""
    parsed = database_urls.parse(url)
    if parsed.drivername != "sqlite" or parsed.database is None:
        return None
    path = Path(parsed.database)
    return None if path.exists() else path


@contextmanager
def failures_as_configuration_errors(url: str) -> Iterator[None]:
    """Turns the failure of a database into one line for the operator.

    Raises:
        ConfigurationError: the database is absent, refuses, or breaks off.
    """
    try:
        yield
    except FAILURES as error:
        raise ConfigurationError(
            f"database {database_urls.shown(database_urls.parse(url))}: {describe(error)}"
        ) from error


def describe(error: BaseException) -> str:
    """What went wrong, in one line, without SQL and without secrets."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    if isinstance(error, PoolTimeout):
        return "no connection of the pool became free in time"
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return "no answer in time"
    return " ".join(str(error).split()) or type(error).__name__
