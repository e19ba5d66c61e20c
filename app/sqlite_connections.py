"""Connections to SQLite for SQLAlchemy: aiosqlite's, with at most one hop to its thread for each statement.

aiosqlite makes the cursor, runs the statement, takes its rows and closes the cursor each in its connection's thread,
and a hop there costs more than most statements do. Here only running it and taking its rows happens there; and the
INSERT of one row, which in a writing transaction waits for nobody, is run at once.
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
    @contextmanager
    async def cursor(self) -> aiosqlite.Cursor:
        return _Cursor(self, self._conn.cursor())


class _Cursor(aiosqlite.Cursor):
    _ahead: Sequence[Any] = ()
    """The first rows of the result, which came with it."""
    _has_more = False
    _is_idle = True

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> Self:
        statement = partial(self._cursor.execute, sql, cast(Sequence[Any], parameters or ()))
        if self._cursor.connection.in_transaction and _ONE_ROW.match(sql):
            self._keep(_first_rows(statement))
            return self
        return await self._begin(statement)

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> Self:
        return await self._begin(partial(self._cursor.executemany, sql, cast(Iterable[Sequence[Any]], parameters)))

    async def _begin(self, statement: Callable[[], sqlite3.Cursor]) -> Self:
        self._is_idle = False
        self._keep(await self._execute(_first_rows, statement))  # type: ignore[no-untyped-call]
        self._is_idle = True
        return self

    def _keep(self, rows: Sequence[Any]) -> None:
        self._ahead, self._has_more = rows, len(rows) == _ROWS_AT_ONCE

    async def fetchmany(self, size: int | None = None) -> Iterable[Any]:
        if not self._ahead:
            return await super().fetchmany(size)
        count = size or self.arraysize
        rows, self._ahead = self._ahead[:count], self._ahead[count:]
        return rows

    async def fetchall(self) -> Iterable[Any]:
        rows, self._ahead = self._ahead, ()
        return [*rows, *await super().fetchall()] if self._has_more else rows

    async def close(self) -> None:
        if self._is_idle:
            self._cursor.close()
        else:  # it failed; or whoever waited for it was cancelled, and the thread is still at it
            await super().close()


def _first_rows(statement: Callable[[], sqlite3.Cursor]) -> Sequence[Any]:
    return statement().fetchmany(_ROWS_AT_ONCE)
