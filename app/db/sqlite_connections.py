"""Connections to SQLite for SQLAlchemy: aiosqlite's, with fewer hops to their threads.

aiosqlite makes the cursor, runs the statement, takes its rows and closes the cursor each in its connection's thread,
and a hop there costs more than most statements do. Here running a statement and taking its first rows is one hop; a
longer result takes more. In WAL mode, a transaction that began by taking the write lock waits for nobody until its
commit: there the INSERT of one row is run at once in the caller's thread.
"""

import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self, cast

import aiosqlite
from aiosqlite.context import contextmanager

_ROWS_AT_ONCE = 1_000
_ONE_ROW = re.compile(r"INSERT INTO \w+ \([^()]*\) VALUES \([?, ]*\)(?! *,)")
"""SQLAlchemy's INSERT of one row, whatever follows; the driver says nothing of what a statement will do."""


def connect(database: str, **options: Any) -> aiosqlite.Connection:
    """Makes a connection that is yet to be awaited: SQLAlchemy's `async_creator_fn`.

    Args:
        database: the file.
        **options: those of `sqlite3.connect`; it must let other threads use the connection, as SQLAlchemy says.
    """
    connection = _Connection(partial(sqlite3.connect, database, **options), iter_chunk_size=_ROWS_AT_ONCE)
    connection._thread.daemon = True  # as SQLAlchemy does where it makes the connection
    return connection


class _Connection(aiosqlite.Connection):
    waits_for_nobody = False
    """Whether the present transaction, if there is one, holds the write lock of a database in WAL mode."""

    @contextmanager
    async def cursor(self) -> aiosqlite.Cursor:
        return _Cursor(self, self._conn.cursor())


class _Cursor(aiosqlite.Cursor):
    _conn: _Connection
    _ahead: Sequence[Any] = ()
    """The first rows of the result, which came with it."""
    _has_more = False
    _is_idle = True
    """Whether nothing of this cursor's is in the thread any more."""

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> Self:
        self._keep(())
        statement = partial(self._cursor.execute, sql, cast(Sequence[Any], parameters or ()))
        if self._conn.waits_for_nobody and self.connection.in_transaction and _ONE_ROW.match(sql):
            self._keep(_first_rows(statement))
        elif sql.startswith("BEGIN"):
            self._conn.waits_for_nobody = False
            self._conn.waits_for_nobody = await self._execute(_begin, self._cursor, sql)
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
        else:  # what went on there failed; or whoever waited for it was cancelled, and it goes on
            await super().close()


def _first_rows(statement: Callable[[], sqlite3.Cursor]) -> Sequence[Any]:
    return statement().fetchmany(_ROWS_AT_ONCE)


def _begin(cursor: sqlite3.Cursor, sql: str) -> bool:
    cursor.execute(sql)
    return sql == "BEGIN IMMEDIATE" and cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",)
