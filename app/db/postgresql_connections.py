"""Connect SQLAlchemy to PostgreSQL, directly or through a pooler such as PgBouncer.

A pooler may run each transaction in another session of the server. So behind a pooler no prepared statement and no
setting outlives its transaction. Every new connection detects a pooler: the announced process id then differs from the
one that answers.
"""

import logging
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import event
from sqlalchemy.engine import Dialect, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import ConnectionPoolEntry

from app.db import ownership
from app.db.failures import PoolerTimeout

logger = logging.getLogger(__name__)

# Seconds that a transaction waits for a server connection of the pooler.
POOLER_TIMEOUT_SECONDS = 10.0

# SQLSTATEs of a prepared statement that belongs to another client or session.
_FOREIGN_STATEMENT = frozenset({"42P05", "26000"})


class _PooledConnection(asyncpg.Connection):  # type: ignore[misc]
    """Send the settings with each transaction, and wrap each read in one."""

    begin_settings = ""

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        """Add the settings to a BEGIN, in the same round trip.

        Raises:
            PoolerTimeout: the pooler assigned no server connection in time; this connection is closed.
        """
        if not query.startswith("BEGIN"):
            return str(await super().execute(query, *args, **options))
        return await _first_answer(self, super().execute(query + self.begin_settings, timeout=POOLER_TIMEOUT_SECONDS))

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        """Read in a transaction, so that the settings apply."""
        if self.is_in_transaction():
            return await super().fetch(query, *args, **options)
        async with self.transaction(isolation="read_committed", readonly=True):
            return await super().fetch(query, *args, **options)


async def _first_answer(connection: asyncpg.Connection, answer: Awaitable[str]) -> str:
    """Await a response that needs a server connection of the pooler."""
    try:
        return str(await answer)
    except TimeoutError:
        # Otherwise the statement in the pooler's queue would later begin a transaction that never ends.
        connection.terminate()
        raise PoolerTimeout(POOLER_TIMEOUT_SECONDS) from None


_POOLED = {"connection_class": _PooledConnection, "statement_cache_size": 0, "prepared_statement_cache_size": 0}
_seen: set[str] = set()
"""Addresses, as asyncpg accepts them, at which this process last found a pooler."""


def install(engine: Engine, settings: Mapping[str, str]) -> None:
    """Make an engine connect with these settings, with or without a pooler.

    Args:
        engine: uses asyncpg; its `connect_args` contain the address as `dsn`.
        settings: PostgreSQL's run-time settings. They apply to each session; behind a pooler, to each transaction.
    """
    event.listen(engine, "do_connect", partial(_connect, settings))
    event.listen(engine, "checkin", _drop_if_closed)


async def is_pooled(connection: AsyncConnection) -> bool:
    """Return whether the connection leads through a pooler."""
    raw = await connection.get_raw_connection()
    return type(raw.driver_connection) is _PooledConnection  # asyncpg answers isinstance() for all of its classes


class _OtherKindError(Exception):
    """Report that the connection is not of the expected kind."""


def _connect(
    settings: Mapping[str, str], dialect: Dialect, _entry: object, _arguments: object, options: dict[str, Any]
) -> DBAPIConnection:
    address = options["dsn"]
    expected = address in _seen or "target_session_attrs" in address  # whose check would prepare a statement
    for pooled in (expected, not expected):
        try:
            connection = dialect.connect(**options, **_kind(dialect, settings, pooled))
        except _OtherKindError:
            continue
        _note(address, pooled)
        return connection
    # The address leads now to a pooler, now to the server. The mode for a pooler works without one, too.
    return dialect.connect(**options, **_kind(dialect, settings, pooled=True, checked=False))


def _kind(dialect: Dialect, settings: Mapping[str, str], pooled: bool, *, checked: bool = True) -> dict[str, Any]:
    create = partial(_create, dialect, settings, pooled, checked)
    return {"async_creator_fn": create, **(_POOLED if pooled else {})}


async def _create(
    dialect: Dialect, settings: Mapping[str, str], pooled: bool, checked: bool, **options: Any
) -> asyncpg.Connection:
    try:
        connection = await asyncpg.connect(**options)
    except asyncpg.PostgresError as error:
        if not pooled and error.sqlstate in _FOREIGN_STATEMENT:
            raise _OtherKindError from error
        raise
    try:
        is_direct = await _set_unless_pooled(connection, settings)
    except BaseException:
        connection.terminate()
        raise
    if checked and is_direct == pooled:
        connection.terminate()
        raise _OtherKindError
    if pooled:
        connection.begin_settings = "".join(f" SET LOCAL {name} = {_quoted(settings[name])};" for name in settings)
    try:
        await ownership.note(connection, dialect)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _set_unless_pooled(connection: asyncpg.Connection, settings: Mapping[str, str]) -> bool:
    """Configure the session and return True if it belongs to this connection."""
    # Without parameters asyncpg sends one message and prepares nothing; the response counts the rows.
    calls = ", ".join(f"set_config('{name}', {_quoted(value)}, false)" for name, value in settings.items())
    query = f"SELECT {calls} WHERE pg_backend_pid() = {connection.get_server_pid()}"
    answer = connection.execute(query, timeout=POOLER_TIMEOUT_SECONDS)
    return await _first_answer(connection, answer) == "SELECT 1"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _note(address: str, pooled: bool) -> None:
    if pooled and address not in _seen:
        logger.info("a connection pooler is in front of the database: no prepared statements, settings by transaction")
    (_seen.add if pooled else _seen.discard)(address)


def _drop_if_closed(connection: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
    if connection is not None and entry.driver_connection.is_closed():  # type: ignore[union-attr]
        entry.invalidate()
