"""Run one SELECT directly on the driver, compiled once, without a session.

For the few reads whose cost would be mostly SQLAlchemy's session, transaction and rows: they cost several times as much
as the database. One statement sees one snapshot on both databases, with or without a transaction.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from sqlalchemy import Pool, Select, TypeDecorator
from sqlalchemy.engine import Dialect, Engine
from sqlalchemy.types import TypeEngine
from sqlalchemy.util import await_only, greenlet_spawn

from app.db import failures

Rows = Sequence[Sequence[Any]]
Convert = Callable[[Any], Any]


@dataclass(frozen=True)
class Query:
    """Hold a compiled SELECT, and the conversions of its parameters and results."""

    text: str
    defaults: Mapping[str, Any]
    """The default values of all parameters; constants of the statement are parameters, too."""
    names: Sequence[str]
    """The names of the parameters, by position."""
    binders: Mapping[str, Convert]
    """Conversions of parameters that the driver does not accept unchanged."""
    converters: Sequence[tuple[int, Convert]]

    @classmethod
    def of(cls, statement: Select[*tuple[Any, ...]], dialect: Dialect) -> Self:
        """Compile a statement."""
        compiled = statement.compile(dialect=dialect)
        types = (column.type for column in statement.selected_columns)
        found = ((i, _converter(type_, dialect)) for i, type_ in enumerate(types))
        return cls(
            str(compiled),
            compiled.params,
            compiled.positiontup or (),
            {name: convert for name, bind in compiled.binds.items() if (convert := _binder(bind.type, dialect))},
            [(i, convert) for i, convert in found if convert is not None],
        )

    def arguments(self, values: Mapping[str, Any]) -> list[Any]:
        """Return the parameters, by position."""
        all_values = {**self.defaults, **values}
        for name, convert in self.binders.items():
            all_values[name] = convert(all_values[name])
        return [all_values[name] for name in self.names]

    def converted(self, rows: Rows) -> Rows:
        """Return the rows with the values that SQLAlchemy would return."""
        if not self.converters:
            return rows
        changed = [list(row) for row in rows]
        for row in changed:
            for i, convert in self.converters:
                row[i] = convert(row[i])
        return changed


def _converter(type_: TypeEngine[Any], dialect: Dialect) -> Convert | None:
    if isinstance(type_, TypeDecorator):  # the product's own types read the drivers' values
        return lambda value: type_.process_result_value(value, dialect)
    return type_.dialect_impl(dialect).result_processor(dialect, None)


def _binder(type_: TypeEngine[Any], dialect: Dialect) -> Convert | None:
    return type_.dialect_impl(dialect).bind_processor(dialect)


class Queries:
    """Cache queries by statement; each is compiled at its first use."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._compiled: dict[Select[*tuple[Any, ...]], Query] = {}

    def get(self, statement: Select[*tuple[Any, ...]]) -> Query:
        """Return the compiled statement, which must live as long as the process."""
        query = self._compiled.get(statement)
        if query is None:
            query = self._compiled[statement] = Query.of(statement, self._dialect)
        return query


class Reader(Protocol):
    """Run queries on a driver."""

    async def ask(self, query: Query, arguments: Sequence[Any]) -> Rows:
        """Return the driver's rows; raise the driver's errors."""

    def close(self) -> None:
        """Close the reader's own connection, if any."""


def reader(engine: Engine) -> Reader:
    """Return the reader for this engine's database."""
    if engine.dialect.name == "sqlite":
        return _SQLiteReader(str(engine.url.database))
    return _PostgreSQLReader(engine.pool, engine.dialect.loaded_dbapi.Error)


@dataclass
class _PostgreSQLReader:
    """Read over a connection of SQLAlchemy's pool.

    A read is one round trip, since asyncpg keeps the statement prepared. Behind a connection pooler it is four:
    `postgresql_connections` wraps it in a transaction.
    """

    pool: Pool
    driver_error: type[Exception]

    async def ask(self, query: Query, arguments: Sequence[Any]) -> Rows:
        """Return the driver's rows; raise the driver's errors."""
        rows: Rows = await greenlet_spawn(self._ask, query.text, arguments)
        return rows

    def _ask(self, text: str, arguments: Sequence[Any]) -> Any:
        try:
            connection = self.pool.connect()
        except self.driver_error as error:  # the engine says better why there is none
            raise ConnectionError("no connection") from error
        try:
            driver: Any = connection.driver_connection
            return await_only(driver.fetch(text, *arguments))
        except BaseException as error:
            if not isinstance(error, Exception) or failures.is_disconnect(error):
                connection.invalidate(error)
            raise
        finally:
            connection.close()

    def close(self) -> None:
        """Do nothing: the engine owns the pool."""


@dataclass
class _SQLiteReader:
    """Read in the event loop's own thread.

    A hop to another thread costs more than the read. In WAL mode readers wait for no lock. If the file is locked
    nevertheless, the read raises at once, and `Database.fetch` repeats it in a thread.
    """

    path: str
    connection: sqlite3.Connection | None = field(default=None, init=False)

    async def ask(self, query: Query, arguments: Sequence[Any]) -> Rows:
        """Return the driver's rows; raise the driver's errors."""
        if self.connection is None:
            self.connection = sqlite3.connect(self.path, timeout=0, isolation_level=None)
            self.connection.execute("PRAGMA query_only = ON")
        return self.connection.execute(query.text, arguments).fetchall()

    def close(self) -> None:
        """Close the connection."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
