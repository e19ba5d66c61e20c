"""Open SQLite and PostgreSQL with engines and sessions that behave alike."""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import tenacity
from sqlalchemy import Select, Table, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase

from app import metrics
from app.db import engines, failures, single_reads, urls
from app.db.engines import BUSY_TIMEOUT_SECONDS, READ_ONLY
from app.db.slots import Slots, hold
from app.db.urls import Target
from app.errors import ConfigurationError, DatabaseUnavailable

DATA_VERSION = text("PRAGMA data_version")
"""Query a number that changes when another connection of this SQLite file has committed."""

_AFTER_COMMIT = "foundation_after_commit"

_OUTCOME_UNKNOWN = "The connection was lost during the commit; the change may or may not have been saved."
MAX_ATTEMPTS = 6
MAX_ATTEMPT_SECONDS = 20

logger = logging.getLogger(__name__)

T = TypeVar("T")
Session = AsyncSession
Work = Callable[[Session], Awaitable[T]]


@dataclass(frozen=True)
class Database:
    """Hold an engine, and sessions for writing (`sessions`) and for reading (`reads`)."""

    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    reads: async_sessionmaker[AsyncSession]
    patience_seconds: float = 0.0
    connections: int = Target.pool_size
    slots: Slots = field(init=False)
    reader: single_reads.Reader = field(init=False)
    queries: single_reads.Queries = field(init=False)
    retrying: tenacity.AsyncRetrying = field(init=False)
    """Copied for each use, since a new one costs as much as a statement."""

    def __post_init__(self) -> None:
        sync = self.engine.sync_engine
        object.__setattr__(self, "slots", Slots(self.connections, one_writer=sync.dialect.name == "sqlite"))
        object.__setattr__(self, "reader", single_reads.reader(sync))
        object.__setattr__(self, "queries", single_reads.Queries(sync.dialect))
        object.__setattr__(self, "retrying", _retrying(self.patience_seconds))

    @classmethod
    def open(
        cls,
        target: Target | str,
        *,
        pragmas: Mapping[str, int] | None = None,
        patience_seconds: float = 0.0,
        **server_settings: str,
    ) -> Self:
        """Prepare a pool of connections, without connecting yet.

        Args:
            target: the database, or any form of `DATABASE_URL`.
            pragmas: SQLite's settings for each connection, such as `wal_autocheckpoint`, added to the default ones.
            patience_seconds: how long a transaction is retried while another session holds a lock.
            **server_settings: PostgreSQL's run-time settings, such as `lock_timeout`; they also apply behind a pooler.

        Raises:
            ValueError: the URL names an unsupported database.
        """
        target = Target(target) if isinstance(target, str) else target
        engine = engines.create(target, pragmas or {}, server_settings)
        return cls(
            engine=engine,
            sessions=async_sessionmaker(engine, expire_on_commit=False),
            reads=async_sessionmaker(engine.execution_options(**{READ_ONLY: True}), expire_on_commit=False),
            patience_seconds=patience_seconds,
            connections=target.pool_size,
        )

    async def transaction(self, work: Work[T], *, repeatable: bool = False, urgent: bool = False) -> T:
        """Run the work in a writing transaction and commit it.

        After a conflict or a lost connection all of the work runs again, in a new transaction.

        Args:
            work: receives the session; may run several times.
            repeatable: the work detects its own earlier commit. Only then does it run again after the connection was
                lost during the commit, when the outcome is unknown.
            urgent: on PostgreSQL the work waits for no other writer of this process. It must be short and rare.

        Raises:
            DatabaseUnavailable: the connection was lost during the commit, and the work is not repeatable.
            sqlalchemy.exc.SQLAlchemyError: the error of the last attempt.
        """
        writers = self.slots.urgent if urgent else self.slots.writers
        return await self.retrying.copy()(self._once, work, writers, repeatable)

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
                raise DatabaseUnavailable(_OUTCOME_UNKNOWN) from error
            raise

    async def read(self, work: Work[T]) -> T:
        """Run the work in a read-only transaction; retry after a lost connection."""
        return await self.retrying.copy()(self._read_once, work)

    async def _read_once(self, work: Work[T]) -> T:
        async with hold(self.slots.readers, BUSY_TIMEOUT_SECONDS), self.reads() as session:
            return await work(session)

    async def scalar(self, statement: Select[T]) -> T | None:
        """Return the first value that a read-only statement finds."""
        return await self.read(lambda session: session.scalar(statement))

    async def fetch(self, statement: Select[*tuple[Any, ...]], **values: Any) -> single_reads.Rows:
        """Return the rows of one SELECT; the fastest way to read.

        The rows are from one snapshot. If the connection was lost, the statement runs again as with `read`.

        Args:
            statement: selects columns, and lives as long as the database; it is compiled once.
            **values: the values of its parameters.
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
        """Close every connection."""
        self.reader.close()
        await self.engine.dispose()


async def _all(session: AsyncSession, statement: Select[*tuple[Any, ...]], values: dict[str, Any]) -> single_reads.Rows:
    return (await session.execute(statement, values)).all()


def _retrying(patience_seconds: float) -> tenacity.AsyncRetrying:
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


def after_commit(session: AsyncSession, call: Callable[[], None]) -> None:
    """Call something after the session's `Database.transaction` has committed; a failure is logged."""
    session.info.setdefault(_AFTER_COMMIT, []).append(call)


def _run_after_commit(session: AsyncSession) -> None:
    for call in session.info.get(_AFTER_COMMIT, ()):
        try:
            call()
        except Exception:
            logger.exception("a callback after a commit failed")


def is_sqlite(session: AsyncSession) -> bool:
    """Return whether the session's database is SQLite."""
    return session.get_bind().dialect.name == "sqlite"


def insert(session: AsyncSession, model: type[DeclarativeBase] | Table) -> postgresql.Insert:
    """Return an INSERT with ON CONFLICT in the session's dialect.

    Both dialects share the methods that the product uses.
    """
    if is_sqlite(session):
        return sqlite.insert(model)  # type: ignore[return-value]
    return postgresql.insert(model)


InsertInto = Callable[[Table], postgresql.Insert]


def made_once(make: Callable[[InsertInto], T]) -> Callable[[AsyncSession], T]:
    """Build a statement once for each dialect.

    Args:
        make: receives the `insert` of the dialect.

    Returns:
        A function that returns the statement in the dialect of a session.
    """
    into: dict[bool, Any] = {True: sqlite.insert, False: postgresql.insert}
    made = functools.cache(lambda for_sqlite: make(into[for_sqlite]))
    return lambda session: made(is_sqlite(session))


def missing_file(url: str) -> Path | None:
    """Return the path of a missing SQLite database, or None."""
    parsed = urls.parse(url)
    if parsed.drivername != "sqlite" or parsed.database is None:
        return None
    path = Path(parsed.database)
    return None if path.exists() else path


@contextmanager
def failures_as_configuration_errors(url: str) -> Iterator[None]:
    """Convert a database failure into one line for the operator.

    Raises:
        ConfigurationError: the database is missing, refuses, or closes the connection.
    """
    try:
        yield
    except failures.FAILURES as error:
        raise ConfigurationError(f"database {urls.shown(urls.parse(url))}: {failures.describe(error)}") from error
