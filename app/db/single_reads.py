"""Single reads: one SELECT, compiled once, given to the bare driver outside of any transaction of SQLAlchemy's.

For the few reads whose price would otherwise be mostly SQLAlchemy's: its session, its transaction's round trips and its
rows cost several times what the database takes. One statement sees one moment on both databases, with or without a
transaction around it.
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
    """A SELECT as a driver takes it, and how its values become those that SQLAlchemy would give."""

    text: str
    defaults: Mapping[str, Any]
    """Of all parameters, those that are constants of the statement included."""
    names: Sequence[str]
    """Of the parameters, by position."""
    binders: Mapping[str, Convert]
    """Of those parameters that a driver does not take as they are."""
    converters: Sequence[tuple[int, Convert]]

    @classmethod
    def of(cls, statement: Select[*tuple[Any, ...]], dialect: Dialect) -> Self:
        """Compiles a statement."""
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
        """The parameters, by position."""
        all_values = {**self.defaults, **values}
        for name, convert in self.binders.items():
            all_values[name] = convert(all_values[name])
        return [all_values[name] for name in self.names]

    def converted(self, rows: Rows) -> Rows:
        """The rows with the values that SQLAlchemy would give."""
        if not self.converters:
            return rows
        changed = [list(row) for row in rows]
        for row in changed:
            for i, convert in self.converters:
                row[i] = convert(row[i])
        return changed


def _converter(type_: TypeEngine[Any], dialect: Dialect) -> Convert | None:
    if isinstance(type_, TypeDecorator):  # the product's own: they read what the drivers give
        return lambda value: type_.process_result_value(value, dialect)
    return type_.dialect_impl(dialect).result_processor(dialect, None)


def _binder(type_: TypeEngine[Any], dialect: Dialect) -> Convert | None:
    return type_.dialect_impl(dialect).bind_processor(dialect)


class Queries:
    """Queries by statement: each is compiled when it is first asked for."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._compiled: dict[Select[*tuple[Any, ...]], Query] = {}

    def get(self, statement: Select[*tuple[Any, ...]]) -> Query:
        """The compiled statement, which must be one of those that live as long as the process."""
        query = self._compiled.get(statement)
        if query is None:
            query = self._compiled[statement] = Query.of(statement, self._dialect)
        return query


class Reader(Protocol):
    """Gives queries to a driver."""

    async def ask(self, query: Query, arguments: Sequence[Any]) -> Rows:
        """The rows as the driver gives them; raises what it raises."""

    def close(self) -> None:
        """Closes what it opened."""


def reader(engine: Engine) -> Reader:
    """The reader of this engine's database."""
    if engine.dialect.name == "sqlite":
        return _SQLiteReader(str(engine.url.database))
    return _PostgreSQLReader(engine.pool, engine.dialect.loaded_dbapi.Error)


@dataclass
class _PostgreSQLReader:
    """Asks over a connection of SQLAlchemy's pool.

    That takes one round trip, since asyncpg keeps the statement prepared. Behind a connection pooler it takes four:
    `postgresql_connections` puts a transaction around it.
    """

    pool: Pool
    driver_error: type[Exception]

    async def ask(self, query: Query, arguments: Sequence[Any]) -> Rows:
        """The rows as the driver gives them; raises what it raises."""
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
        """Nothing: the pool is its owner's."""


@dataclass
class _SQLiteReader:
    """Asks in the event loop's own thread: in WAL mode nobody is waited for, and a hop to another thread costs more.

    Where the file is locked all the same, it does not wait: it raises at once, and the question is asked in a thread.
    """

    path: str
    connection: sqlite3.Connection | None = field(default=None, init=False)

    async def ask(self, query: Query, arguments: Sequence[Any]) -> Rows:
        """The rows as the driver gives them; raises what it raises."""
        if self.connection is None:
            self.connection = sqlite3.connect(self.path, timeout=0, isolation_level=None)
            self.connection.execute("PRAGMA query_only = ON")
        return self.connection.execute(query.text, arguments).fetchall()

    def close(self) -> None:
        """Closes the connection."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
