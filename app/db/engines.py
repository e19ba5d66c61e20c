"""Make SQLAlchemy's engines for SQLite and PostgreSQL, whose connections behave alike."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app import clock
from app.db import failures, postgresql_connections, sqlite_connections, urls
from app.db.urls import Target

READ_ONLY = "foundation_read_only"
"""Execution option of read-only connections. On SQLite their transactions do not acquire the write lock."""

# Seconds that a transaction waits for a slot, and on SQLite for the lock of another process.
BUSY_TIMEOUT_SECONDS = 10
CONNECT_TIMEOUT_SECONDS = 10

_LIBPQ_ONLY = (
    *("connect_timeout", "channel_binding", "gssencmode", "sslnegotiation", "sslcompression", "sslsni", "requirepeer"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    *("client_encoding", "fallback_application_name", "load_balance_hosts"),
)


def create(target: Target, pragmas: Mapping[str, int], server_settings: dict[str, str]) -> AsyncEngine:
    """Return an engine, not connected yet; `Database.open` describes the settings."""
    url = urls.parse(target.url)
    if url.drivername == "sqlite":
        return _sqlite_engine(url, pragmas)
    return _postgresql_engine(url, target, server_settings)


def _sqlite_engine(url: URL, pragmas: Mapping[str, int]) -> AsyncEngine:
    engine = create_async_engine(
        url.set(drivername="sqlite+aiosqlite"),
        hide_parameters=True,
        connect_args={
            "async_creator_fn": sqlite_connections.connect,
            "isolation_level": None,
            "timeout": BUSY_TIMEOUT_SECONDS,
        },
    )
    event.listen(engine.sync_engine, "connect", lambda connection, _record: _prepare(connection, pragmas))
    event.listen(engine.sync_engine, "begin", _begin)
    event.listen(engine.sync_engine, "before_cursor_execute", sqlite_connections.note_mark)
    return engine


_PRAGMAS = {
    "foreign_keys": "ON",
    "synchronous": "FULL",
    "secure_delete": "ON",  # overwrites deleted content, which would remain in free pages
}


def _prepare(connection: Any, pragmas: Mapping[str, int]) -> None:
    cursor = connection.cursor()
    for name, value in {**_PRAGMAS, **pragmas}.items():
        cursor.execute(f"PRAGMA {name} = {value}")
    cursor.close()
    connection.create_function("foundation_instant", 1, clock.stored_instant, deterministic=True)
    connection.driver_connection.text_factory = _decode  # an undecodable byte in an old row must not fail a statement


def _decode(stored: bytes) -> str:
    return stored.decode("utf-8", "replace")


def _begin(connection: Connection) -> None:
    # A deferred transaction that later writes fails with SQLITE_BUSY despite the timeout. So writers begin IMMEDIATE.
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


# Seconds after its `statement_timeout` at which a server has failed.
_SECONDS_LATE = 2.0

_AS_TEXT = {"timezone": "UTC", "datestyle": "ISO", "extra_float_digits": "1"}
"""How PostgreSQL casts instants and floats to text; overrides the settings of the role and the database."""


def _servers(url: URL) -> list[str]:
    # asyncpg parses the URLs, so that their parameters mean what they mean to libpq. asyncpg sends unknown parameters
    # to the server as settings, which refuses them; so parameters that only libpq knows are removed.
    return urls.servers(url.difference_update_query(_LIBPQ_ONLY))


def _postgresql_engine(url: URL, target: Target, server_settings: dict[str, str]) -> AsyncEngine:
    servers = _servers(url)
    primary = _servers(urls.parse(target.replica_of)) if target.replica_of else ()
    # A server that is down must leave time for the others.
    timeout = float(str(url.query.get("connect_timeout", 0))) or CONNECT_TIMEOUT_SECONDS / len(servers)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        hide_parameters=True,
        connect_args={
            "server_settings": {"application_name": "foundation-be"},  # every pooler accepts this one
            "command_timeout": _seconds_to_answer(server_settings),
        },
        isolation_level="READ COMMITTED",
        pool_size=target.pool_size - target.pool_size // 2,
        max_overflow=target.pool_size // 2,
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
    )
    settings = {**_AS_TEXT, **server_settings}
    address = postgresql_connections.Address(servers, timeout, settings, target.prepared_statements, *primary[:1])
    postgresql_connections.install(engine.sync_engine, address)
    event.listen(engine.sync_engine, "do_executemany", _execute_in_parts)
    event.listen(engine.sync_engine, "handle_error", _reconnect)
    return engine


def _seconds_to_answer(server_settings: Mapping[str, str]) -> float | None:
    """Return how long to wait for a server that may be frozen.

    A server that works ends the statement earlier.
    """
    limit = server_settings.get("statement_timeout")
    return None if limit is None else int(limit) / 1000 + _SECONDS_LATE


def _reconnect(context: ExceptionContext) -> None:
    # After a failover the pool's connections lead to a server that only reads; new ones find the primary. A connection
    # whose statement timed out waits for the end of that statement first.
    error = context.original_exception
    if failures.is_read_only(error) or isinstance(error, TimeoutError):
        context.is_disconnect = True


_ROWS_IN_PART = 200


def _execute_in_parts(cursor: Any, statement: str, rows: Sequence[Any], _context: Any) -> bool:
    # asyncpg pauses after 128 KB until the socket is writable. If the connection is lost meanwhile, it waits forever.
    for start in range(0, len(rows), _ROWS_IN_PART):
        cursor.executemany(statement, rows[start : start + _ROWS_IN_PART])
    return True
