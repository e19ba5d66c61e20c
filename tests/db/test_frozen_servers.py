"""A server that accepts statements and never answers must not hold up a request for ever."""

import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import Select, func, select

from app.db.database import Database
from tests.support.poolers import opened

PROCESS: Select[Any] = select(func.pg_backend_pid())

Ask = Callable[[Database], Awaitable[int]]


@pytest.fixture
def kind() -> str:
    """SQLite has no server."""
    return "postgresql"


async def fetched(database: Database) -> int:
    """The server's process, by the fastest way to read."""
    ((process,),) = await database.fetch(PROCESS)
    return int(process)


async def read(database: Database) -> int:
    """The server's process, in a transaction that reads."""
    return int(await database.read(lambda session: session.scalar(PROCESS)))


async def written(database: Database) -> int:
    """The server's process, in a transaction that may write."""
    return int(await database.transaction(lambda session: session.scalar(PROCESS)))


@pytest.mark.parametrize("ask", [fetched, read, written])
async def test_a_connection_that_does_not_answer_is_replaced(
    database_url: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.db.engines._SECONDS_LATE", 0.2)
    async with opened(database_url, statement_timeout="100") as database:
        frozen = await ask(database)
        os.kill(frozen, signal.SIGSTOP)
        try:
            assert await ask(database) != frozen
            assert await ask(database) != frozen
        finally:
            os.kill(frozen, signal.SIGCONT)
