"""Connect SQLAlchemy to PostgreSQL, directly or through a pooler such as PgBouncer.

A pooler may run each transaction in another session of the server. So behind a pooler no setting outlives its
transaction, and a prepared statement only if the pooler tracks it. Every new connection detects a pooler: the announced
process id then differs from the one that answers. A pooler that tracks statements gives them other names on the server.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import asyncpg
from sqlalchemy import event
from sqlalchemy.engine import Dialect, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import ConnectionPoolEntry

from app.db import failures, ownership
from app.db.failures import PoolerTimeout

logger = logging.getLogger(__name__)

# Seconds that a transaction waits for a server connection of the pooler.
POOLER_TIMEOUT_SECONDS = 10.0

T = TypeVar("T")


class _PooledConnection(asyncpg.Connection):  # type: ignore[misc]
    """Send the settings with each transaction, and wrap each read in one."""

    begin_settings = ""

    def _get_unique_id(self, prefix: str) -> str:
        # asyncpg's own names are unique in a process. Through a pooler they could run another process's statement.
        return f"{prefix}_{uuid.uuid4().hex}"

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        """Add the settings to a BEGIN, in the same round trip.

        Raises:
            PoolerTimeout: the pooler assigned no server connection in time; this connection is closed.
        """
        if not query.startswith("BEGIN"):
            return str(await super().execute(query, *args, **options))
        return await _first_answer(self, super().execute(query + self.begin_settings))

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        """Read in a transaction, so that the settings apply."""
        if self.is_in_transaction():
            return await super().fetch(query, *args, **options)
        async with self.transaction(isolation="read_committed", readonly=True):
            return await super().fetch(query, *args, **options)


async def _first_answer(connection: asyncpg.Connection, answer: Awaitable[T]) -> T:
    """Await a response that needs a server connection of the pooler."""
    try:
        async with asyncio.timeout(POOLER_TIMEOUT_SECONDS):
            return await answer
    except TimeoutError:
        # Otherwise the statement in the pooler's queue would later begin a transaction that never ends.
        connection.terminate()
        raise PoolerTimeout(POOLER_TIMEOUT_SECONDS) from None


class _Kind(NamedTuple):
    """Distinguish connections by what outlives a transaction."""

    pooled: bool
    prepared: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the driver."""
        pooled = {"connection_class": _PooledConnection} if self.pooled else {}
        return pooled if self.prepared else pooled | {"statement_cache_size": 0, "prepared_statement_cache_size": 0}


_WORKS_EVERYWHERE = _Kind(pooled=True, prepared=False)


class Address(NamedTuple):
    """Say where and how to connect.

    `servers` has a URL for each server; the one that worked last is tried first. `settings` are PostgreSQL's run-time
    settings: they apply to each session; behind a pooler, to each transaction. `prepared` is None where statements are
    prepared if there is no pooler, or one that tracks them. `primary` is the primary's first server, for a replica.
    """

    servers: Sequence[str]
    timeout_seconds: float
    settings: Mapping[str, str]
    prepared: bool | None
    primary: str | None = None


_seen: dict[str, _Kind] = {}
"""The kind of connection that this process last found at a server, by its URL."""
_last: dict[str, str] = {}
"""The server that last accepted a connection, by the first server of its address."""
_found: dict[str, tuple[object, ...]] = {}
"""The database that this process last found, by the first server of its address."""
# A streaming replica has the identifier of its primary.
IDENTITY = "SELECT current_database(), system_identifier FROM pg_control_system()"


def install(engine: Engine, address: Address) -> None:
    """Make an engine, which uses asyncpg, connect to this address."""
    event.listen(engine, "do_connect", partial(_connect, address))
    event.listen(engine, "checkin", _drop_if_closed)


async def is_pooled(connection: AsyncConnection) -> bool:
    """Return whether the connection leads through a pooler."""
    raw = await connection.get_raw_connection()
    return type(raw.driver_connection) is _PooledConnection  # asyncpg answers isinstance() for all of its classes


class _OtherKindError(Exception):
    """Report that the connection is not of the expected kind."""

    def __init__(self, kind: _Kind) -> None:
        super().__init__()
        self.kind = kind


def _connect(
    address: Address, dialect: Dialect, _entry: object, _arguments: object, options: dict[str, Any]
) -> DBAPIConnection:
    first = _last.get(address.servers[0])
    for server in sorted(address.servers, key=lambda server: server != first):
        try:
            connection = _connect_to(server, address, dialect, options)
        except Exception as error:
            if not failures.is_disconnect(error):
                raise
            failure = error
        else:
            _last[address.servers[0]] = server
            return connection
    raise failure


def _connect_to(server: str, address: Address, dialect: Dialect, options: dict[str, Any]) -> DBAPIConnection:
    options = {**options, "dsn": server, "timeout": address.timeout_seconds}
    kind = _seen.get(server) or _Kind(pooled=False, prepared=address.prepared is not False)
    if server not in _seen and "target_session_attrs" in server:  # whose check may prepare a statement
        kind = _WORKS_EVERYWHERE
    for _ in _Kind._fields:
        try:
            connection = dialect.connect(**options, **_creation(dialect, address, kind))
        except _OtherKindError as other:
            kind = other.kind
        else:
            _note(server, kind)
            return connection
    # The address leads now to a pooler, now to the server.
    return dialect.connect(**options, **_creation(dialect, address, _WORKS_EVERYWHERE, checked=False))


def _creation(dialect: Dialect, address: Address, kind: _Kind, *, checked: bool = True) -> dict[str, Any]:
    return {"async_creator_fn": partial(_create, dialect, address, kind, checked), **kind.arguments}


async def _create(
    dialect: Dialect, address: Address, expected: _Kind, checked: bool, **options: Any
) -> asyncpg.Connection:
    try:
        connection = await asyncpg.connect(**options)
    except asyncpg.PostgresError as error:
        if expected.prepared and address.prepared is None and error.sqlstate in failures.FOREIGN_STATEMENT:
            raise _OtherKindError(_WORKS_EVERYWHERE) from error
        raise
    try:
        kind = await _kind_of(connection, address)
    except BaseException:
        connection.terminate()
        raise
    if checked and kind != expected:
        connection.terminate()
        raise _OtherKindError(kind)
    if expected.pooled:
        settings = (f" SET LOCAL {name} = {_quoted(value)};" for name, value in address.settings.items())
        connection.begin_settings = "".join(settings)
    try:
        await _check_identity(connection, address)
        await ownership.note(connection, dialect)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _check_identity(connection: asyncpg.Connection, address: Address) -> None:
    """Refuse a replica, or one of several servers, that has another database.

    Raises:
        asyncpg.InterfaceError: it has. The next server is tried.
    """
    try:
        ((*found,),) = await connection.fetch(IDENTITY)
    except asyncpg.PostgresError:  # not permitted, or not PostgreSQL's own server
        return
    expected = _found.get(address.primary or address.servers[0])
    if (address.primary or len(address.servers) > 1) and expected not in (None, tuple(found)):
        raise asyncpg.InterfaceError("the server has another database than the one before")
    if address.primary is None:
        _found[address.servers[0]] = tuple(found)


async def _kind_of(connection: asyncpg.Connection, address: Address) -> _Kind:
    """Find out the kind of a connection, and configure its session."""
    pooled = not await _set_unless_pooled(connection, address.settings)
    if address.prepared is not None or not pooled:
        return _Kind(pooled, address.prepared is not False)
    return _Kind(pooled, await _first_answer(connection, _tracks_statements(connection)))


async def _set_unless_pooled(connection: asyncpg.Connection, settings: Mapping[str, str]) -> bool:
    # Without parameters asyncpg sends one message and prepares nothing; the response counts the rows.
    calls = ", ".join(f"set_config('{name}', {_quoted(value)}, false)" for name, value in settings.items())
    query = f"SELECT {calls} WHERE pg_backend_pid() = {connection.get_server_pid()}"
    found: str = await _first_answer(connection, connection.execute(query))
    return found == "SELECT 1"


async def _tracks_statements(connection: asyncpg.Connection) -> bool:
    """Return whether the pooler renames prepared statements on the server.

    PgBouncer does since 1.21, if its `max_prepared_statements` is not 0.
    """
    name = f"probe_{uuid.uuid4().hex}"
    async with connection.transaction():
        await connection.prepare("SELECT 1", name=name)
        found = await connection.execute(f"SELECT FROM pg_prepared_statements WHERE name = '{name}'")
        if is_own_name := found == "SELECT 1":
            await connection.execute(f"DEALLOCATE {name}")
    return not is_own_name


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _note(server: str, kind: _Kind) -> None:
    if kind.pooled and _seen.get(server) != kind:
        statements = "prepared statements" if kind.prepared else "no prepared statements"
        logger.info("a connection pooler is in front of the database: %s, settings by transaction", statements)
    _seen[server] = kind


def _drop_if_closed(connection: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
    if connection is not None and entry.driver_connection.is_closed():  # type: ignore[union-attr]
        entry.invalidate()
