"""Connect SQLAlchemy to SQLite through aiosqlite, with fewer hops to its threads.

aiosqlite makes the cursor, runs the statement, fetches its rows and closes the cursor each in the connection's thread.
A hop to that thread costs more than most statements. Here running a statement and fetching its first rows is one hop.
In WAL mode, a transaction that holds the write lock waits for no other process until its commit. So its statements that
are marked `BY_KEY` run at once, in the caller's thread.
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self, cast

import aiosqlite
from aiosqlite.context import contextmanager
from sqlalchemy import Connection
from sqlalchemy.engine import ExecutionContext

BY_KEY = {"foundation_by_key": True}
"""Execution options of a statement that touches few rows, each by its key."""

_ROWS_AT_ONCE = 1_000


def connect(database: str, **options: Any) -> aiosqlite.Connection:
    """Make a connection that the caller awaits: SQLAlchemy's `async_creator_fn`.

    Args:
        database: the path of the file.
        **options: the options of `sqlite3.connect`, which SQLAlchemy chooses; other threads may use the connection.
    """
    connection = _Connection(partial(sqlite3.connect, database, **options), iter_chunk_size=_ROWS_AT_ONCE)
    connection._thread.daemon = True  # as SQLAlchemy does with connections that it makes itself
    return connection


def note_mark(connection: Connection, *arguments: Any) -> None:
    """Note whether the next statement is marked `BY_KEY`.

    A listener of `before_cursor_execute`.
    """
    context: ExecutionContext = arguments[3]
    driver = cast(_Connection, connection.connection.driver_connection)
    driver.is_by_key = "foundation_by_key" in context.execution_options


class _Connection(aiosqlite.Connection):
    never_waits = False
    """Whether the current transaction, if any, holds the write lock of a database in WAL mode."""
    is_by_key = False
    """Whether the next statement is marked `BY_KEY`."""

    @contextmanager
    async def cursor(self) -> aiosqlite.Cursor:
        return _Cursor(self, self._conn.cursor())


class _Cursor(aiosqlite.Cursor):
    _conn: _Connection
    _ahead: Sequence[Any] = ()
    """The first rows of the result, which were fetched with the statement."""
    _has_more = False
    _is_idle = True
    """Whether the thread has no unfinished work of this cursor."""

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> Self:
        self._keep(())
        statement = partial(self._cursor.execute, sql, cast(Sequence[Any], parameters or ()))
        if self._conn.is_by_key and self._conn.never_waits and self.connection.in_transaction:
            self._keep(_first_rows(statement))
        elif sql.startswith("BEGIN"):
            self._conn.never_waits = False
            self._conn.never_waits = await self._execute(_begin, self._cursor, sql)
        else:
            self._keep(await self._execute(_first_rows, statement))
        return self

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> Self:
        self._keep(())
        many = cast(Iterable[Sequence[Any]], parameters)
        self._keep(await self._execute(_first_rows, partial(self._cursor.executemany, sql, many)))
        return self

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._is_idle = False
        result = await super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        self._is_idle = True
        return result

    def _keep(self, rows: Sequence[Any]) -> None:
        self._ahead, self._has_more = rows, len(rows) == _ROWS_AT_ONCE

    async def fetchone(self) -> Any:
        rows = list(await self.fetchmany(1))
        return rows[0] if rows else None

    async def fetchmany(self, size: int | None = None) -> Iterable[Any]:
        if not self._ahead:
            return await super().fetchmany(size)
        count = self.arraysize if size is None else size
        rows, self._ahead = self._ahead[:count], self._ahead[count:]
        return rows

    async def fetchall(self) -> Iterable[Any]:
        rows, self._ahead = self._ahead, ()
        return [*rows, *await super().fetchall()] if self._has_more else rows

    async def close(self) -> None:
        if self._is_idle:
            self._cursor.close()
        else:  # the statement failed, or its caller was cancelled and the statement still runs
            await super().close()


def _first_rows(statement: Callable[[], sqlite3.Cursor]) -> Sequence[Any]:
    return statement().fetchmany(_ROWS_AT_ONCE)


def _begin(cursor: sqlite3.Cursor, sql: str) -> bool:
    cursor.execute(sql)
    return sql == "BEGIN IMMEDIATE" and cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",)
