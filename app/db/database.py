"""The database layer: engines and sessions for SQLite and PostgreSQL that behave alike."""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import tenacity
from sqlalchemy import Connection, Select, Table, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from app import clock, metrics
from app.db import failures, postgresql_connections, single_reads, slots, sqlite_connections, urls
from app.db.slots import Slots, hold
from app.errors import ConfigurationError, DatabaseUnavailable

READ_ONLY = "foundation_read_only"
"""Execution option of connections that only read: on SQLite their transactions do not take the write lock."""

DATA_VERSION = text("PRAGMA data_version")
"""On SQLite a number that changes where other connections have committed since this one asked last."""

_AFTER_COMMIT = "foundation_after_commit"

# Seconds that a transaction waits for a slot, and on SQLite for the lock of another process.
BUSY_TIMEOUT_SECONDS = 10
CONNECT_TIMEOUT_SECONDS = 10

_LIBPQ_ONLY = (
    *("connect_timeout", "channel_binding", "gssencmode", "sslnegotiation", "sslcompression", "sslsni", "requirepeer"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    *("client_encoding", "fallback_application_name", "load_balance_hosts"),
)
MAX_ATTEMPTS = 6
MAX_ATTEMPT_SECONDS = 20

logger = logging.getLogger(__name__)

T = TypeVar("T")
Session = AsyncSession
Work = Callable[[Session], Awaitable[T]]


@dataclass(frozen=True)
class Database:
    """An engine with two ways in: `sessions` for what writes, `reads` for what only reads."""

    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    reads: async_sessionmaker[AsyncSession]
    patience_seconds: float = 0.0
    slots: Slots = field(init=False)
    reader: single_reads.Reader = field(init=False)
    queries: single_reads.Queries = field(init=False)

    def __post_init__(self) -> None:
        sync = self.engine.sync_engine
        object.__setattr__(self, "slots", Slots(one_writer=sync.dialect.name == "sqlite"))
        object.__setattr__(self, "reader", single_reads.reader(sync))
        object.__setattr__(self, "queries", single_reads.Queries(sync.dialect))

    @classmethod
    def open(
        cls,
        url: str,
        *,
        pragmas: Mapping[str, int] | None = None,
        patience_seconds: float = 0.0,
        **server_settings: str,
    ) -> Self:
        """Prepares a pool of connections; connects to nothing yet.

        Args:
            url: any form of `DATABASE_URL`.
            pragmas: SQLite's settings for each connection, such as `wal_autocheckpoint`, beside those that always hold.
            patience_seconds: how long a transaction is retried while another session holds a lock.
            **server_settings: PostgreSQL's run-time settings, such as `lock_timeout`; they hold behind a pooler, too.

        Raises:
            ValueError: the URL is of no database on which this product runs.
        """
        parsed = urls.parse(url)
        engine = (
            _sqlite_engine(parsed, pragmas or {})
            if parsed.drivername == "sqlite"
            else _postgresql_engine(parsed, server_settings)
        )
        return cls(
            engine=engine,
            sessions=async_sessionmaker(engine, expire_on_commit=False),
            reads=async_sessionmaker(engine.execution_options(**{READ_ONLY: True}), expire_on_commit=False),
            patience_seconds=patience_seconds,
        )

    async def transaction(self, work: Work[T], *, repeatable: bool = False, urgent: bool = False) -> T:
        """Run the work in a transaction that writes, and commit it.

        All of the work is run again where another transaction or the database interrupted it.

        Args:
            work: is given the session; may run several times, each time in a new transaction.
            repeatable: the work finds out by itself that it was committed before. Only then is it run again after a
                connection was lost during the commit, when it is unknown whether that succeeded.
            urgent: on PostgreSQL the work waits for no other writer of this process. It must be short and rare.

        Raises:
            DatabaseUnavailable: it is unknown whether the work was committed.
            sqlalchemy.exc.SQLAlchemyError: what the last of a few attempts raised.
        """
        writers = self.slots.urgent if urgent else self.slots.writers
        async for attempt in _attempts(self.patience_seconds):
            with attempt:
                return await self._once(work, writers, repeatable)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _once(self, work: Work[T], writers: asyncio.Semaphore, repeatable: bool) -> T:
        committing = False
        try:
            async with hold(writers, BUSY_TIMEOUT_SECONDS), self.sessions.begin() as session:
                result = await work(session)
                committing = True
            _run_after_commit(session)
            return result
        except failures.FAILURES as error:
            if committing and not repeatable and not failures.is_conflict(error):
                raise DatabaseUnavailable("The database broke off; it is not known whether this was stored.") from error
            raise

    async def read(self, work: Work[T]) -> T:
        """Run the work in a transaction that only reads; again where the connection was lost."""
        async for attempt in _attempts(self.patience_seconds):
            with attempt:
                async with hold(self.slots.readers, BUSY_TIMEOUT_SECONDS), self.reads() as session:
                    return await work(session)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def scalar(self, statement: Select[T]) -> T | None:
        """The first value that a statement finds, which only reads."""
        return await self.read(lambda session: session.scalar(statement))

    async def fetch(self, statement: Select[*tuple[Any, ...]], **values: Any) -> single_reads.Rows:
        """The rows of one SELECT, of one moment: the fastest way to read, for statements that live as long as this.

        Where the database broke it off, it is asked again as `read` does.

        Args:
            statement: selects columns; it is compiled once.
            **values: of its parameters.
        """
        query = self.queries.get(statement)
        try:
            async with hold(self.slots.single, BUSY_TIMEOUT_SECONDS):
                return query.converted(await self.reader.ask(query, query.arguments(values)))
        except failures.FAILURES as error:
            if not failures.is_transient(error):
                raise
        return await self.read(lambda session: _all(session, statement, values))

    async def close(self) -> None:
        """Closes every connection."""
        self.reader.close()
        await self.engine.dispose()


async def _all(session: AsyncSession, statement: Select[*tuple[Any, ...]], values: dict[str, Any]) -> single_reads.Rows:
    return (await session.execute(statement, values)).all()


def _attempts(patience_seconds: float) -> tenacity.AsyncRetrying:
    few = tenacity.stop_after_attempt(MAX_ATTEMPTS) | tenacity.stop_after_delay(MAX_ATTEMPT_SECONDS)
    late = tenacity.stop_after_delay(patience_seconds)

    def stop(state: tenacity.RetryCallState) -> bool:
        return few(state) and (late(state) or not _is_conflict(state))

    def before_sleep(state: tenacity.RetryCallState) -> None:
        metrics.tried_again("transaction")
        if few(state):
            logger.warning("lock held by another session; retrying")

    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(failures.is_transient),
        stop=stop,
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=1),
        before_sleep=before_sleep,
        reraise=True,
    )


def _is_conflict(state: tenacity.RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    return error is not None and failures.is_conflict(error)


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
    return engine


_PRAGMAS = {
    "foreign_keys": "ON",
    "synchronous": "FULL",
    "secure_delete": "ON",  # deleted content does not linger in free pages
}


def _prepare(connection: Any, pragmas: Mapping[str, int]) -> None:
    cursor = connection.cursor()
    for name, value in {**_PRAGMAS, **pragmas}.items():
        cursor.execute(f"PRAGMA {name} = {value}")
    cursor.close()
    connection.create_function("foundation_instant", 1, clock.stored_instant, deterministic=True)
    connection.driver_connection.text_factory = _decode  # one bad byte in an old row must not fail a whole statement


def _decode(stored: bytes) -> str:
    return stored.decode("utf-8", "replace")


def _begin(connection: Connection) -> None:
    # A deferred transaction that turns to writing fails with SQLITE_BUSY whatever the timeout: writers say so at once.
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


_AS_TEXT = {"timezone": "UTC", "datestyle": "ISO", "extra_float_digits": "1"}
"""How PostgreSQL writes instants and floats where they are cast to text, whatever a role or a database is set to."""


def _postgresql_engine(url: URL, server_settings: dict[str, str]) -> AsyncEngine:
    # asyncpg reads the URL itself, so that the parameters of libpq's URLs mean what they mean there; those that it does
    # not know it would send to the server as settings, which refuses them.
    timeout = float(str(url.query.get("connect_timeout", CONNECT_TIMEOUT_SECONDS)))
    url = url.difference_update_query(_LIBPQ_ONLY)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        hide_parameters=True,
        connect_args={
            "dsn": url.render_as_string(hide_password=False),
            "timeout": timeout,
            "server_settings": {"application_name": "foundation-be"},  # every pooler accepts this one
        },
        isolation_level="READ COMMITTED",
        pool_size=slots.CONNECTIONS // 2,
        max_overflow=slots.CONNECTIONS // 2,
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
    )
    postgresql_connections.install(engine.sync_engine, {**_AS_TEXT, **server_settings})
    event.listen(engine.sync_engine, "do_executemany", _execute_in_parts)
    event.listen(engine.sync_engine, "handle_error", _reconnect_if_read_only)
    return engine


def _reconnect_if_read_only(context: ExceptionContext) -> None:
    # After a failover the pool's connections lead to a server that only reads; new ones find the primary.
    if failures.is_read_only(context.original_exception):
        context.is_disconnect = True


_ROWS_IN_PART = 200


def _execute_in_parts(cursor: Any, statement: str, rows: Sequence[Any], _context: Any) -> bool:
    # Of more than 128 KB asyncpg sends the rest when it may write again, and waits for that for ever where the
    # connection is lost in between.
    for start in range(0, len(rows), _ROWS_IN_PART):
        cursor.executemany(statement, rows[start : start + _ROWS_IN_PART])
    return True


def after_commit(session: AsyncSession, call: Callable[[], None]) -> None:
    """Has something called once the session's `Database.transaction` was committed; if it fails, that is logged."""
    session.info.setdefault(_AFTER_COMMIT, []).append(call)


def _run_after_commit(session: AsyncSession) -> None:
    for call in session.info.get(_AFTER_COMMIT, ()):
        try:
            call()
        except Exception:
            logger.exception("something that follows a commit failed")


def is_sqlite(session: AsyncSession) -> bool:
    """Whether the session's database is SQLite."""
    return session.get_bind().dialect.name == "sqlite"


def insert(session: AsyncSession, model: type[DeclarativeBase] | Table) -> postgresql.Insert:
    """An INSERT that knows ON CONFLICT, in the dialect of the session; both dialects share the methods used here."""
    if is_sqlite(session):
        return sqlite.insert(model)  # type: ignore[return-value]
    return postgresql.insert(model)


InsertInto = Callable[[Table], postgresql.Insert]


def made_once(make: Callable[[InsertInto], T]) -> Callable[[AsyncSession], T]:
    """Makes a statement once for each dialect, where making it anew would cost more than running it.

    Args:
        make: is given the `insert` of the dialect.

    Returns:
        What gives the statement in the dialect of a session.
    """
    into: dict[bool, Any] = {True: sqlite.insert, False: postgresql.insert}
    made = functools.cache(lambda for_sqlite: make(into[for_sqlite]))
    return lambda session: made(is_sqlite(session))


def missing_file(url: str) -> Path | None:
    """The path of a SQLite database that does not exist, or None."""
    parsed = urls.parse(url)
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
    except failures.FAILURES as error:
        raise ConfigurationError(f"database {urls.shown(urls.parse(url))}: {failures.describe(error)}") from error
