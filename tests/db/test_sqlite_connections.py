"""Connections to SQLite: results of any length, whole or in parts; who is in whose way; what is broken off."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError

from app import clock
from app.db import sqlite_connections
from app.db.database import Database
from app.db.sqlite_connections import BY_KEY
from models import FoundationSetting, User
from services.usage.token_usage import Entry, record_all
from tests.support.accounts import Caller

NUMBERS = text(
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :last) SELECT i FROM n WHERE i <= :last"
)
LENGTHS = (0, 1, 999, 1000, 1001, 2500)


@pytest.fixture
def kind() -> str:
    """SQLite alone."""
    return "sqlite"


@pytest.fixture
def hops(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """All that is given to the threads of connections from now on."""
    given: list[object] = []
    execute = sqlite_connections._Connection._execute

    async def noted(self: Any, function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        given.append((function, *args))
        return await execute(self, function, *args, **more)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(sqlite_connections._Connection, "_execute", noted)
    return given


@pytest.mark.parametrize("length", LENGTHS)
async def test_all_rows_come_however_many(database: Database, length: int) -> None:
    async with database.reads() as session:
        assert list(await session.scalars(NUMBERS, {"last": length})) == list(range(1, length + 1))


@pytest.mark.parametrize("size", [1, 7, 1000, 3000])
@pytest.mark.parametrize("length", LENGTHS)
async def test_all_rows_come_in_parts(database: Database, length: int, size: int) -> None:
    async with database.reads() as session:
        stream = await session.stream_scalars(NUMBERS.execution_options(yield_per=size), {"last": length})
        assert [number async for number in stream] == list(range(1, length + 1))


async def test_a_stream_is_not_read_to_its_end_at_once(database: Database, hops: list[object]) -> None:
    async with database.reads() as session:
        stream = await session.stream_scalars(NUMBERS.execution_options(yield_per=10), {"last": 10**9})
        assert [await anext(stream) for _ in range(15)] == list(range(1, 16))
        await stream.close()
        assert list(await session.scalars(NUMBERS, {"last": 3})) == [1, 2, 3]


async def test_a_statement_takes_one_hop_and_none_by_key(database: Database, hops: list[object]) -> None:
    adding, reading = insert(FoundationSetting), select(FoundationSetting.name)
    rows = [{"name": name, "value": "1"} for name in ("one", "two", "three")]
    async with database.sessions.begin() as session:
        await session.connection()
        hops.clear()
        await session.execute(adding.execution_options(**BY_KEY), rows[0])
        await session.execute(adding.returning(FoundationSetting.name).execution_options(**BY_KEY), rows[1:])
        assert (await session.scalars(reading.where(FoundationSetting.name == "two").execution_options(**BY_KEY))).one()
        assert hops == []
        assert set(await session.scalars(reading.where(FoundationSetting.value == "1"))) == {"one", "two", "three"}
        assert len(hops) == 1
        await session.execute(adding, {"name": "four", "value": "1"})
        assert len(hops) == 2
    async with database.reads() as session:
        await session.connection()
        hops.clear()
        assert await session.scalar(reading.where(FoundationSetting.name == "one").execution_options(**BY_KEY)) == "one"
        assert len(hops) == 1


@pytest.mark.parametrize(("many", "hops_to_thread"), [(2, False), (1000, True)])
async def test_many_messages_do_not_hold_up_the_event_loop(
    database: Database, ayu: Caller, hops: list[object], many: int, hops_to_thread: bool
) -> None:
    entry = Entry(user_id=ayu.id, role="user", created_at=clock.now(), content="Hello")
    async with database.sessions.begin() as session:
        await session.connection()
        hops.clear()
        for key in (None, "key"):
            entries = [replace(entry, idempotency_key=key and f"{key}-{number}") for number in range(many)]
            assert len(await record_all(session, entries, UTC)) == many
            assert bool(hops) is hops_to_thread
            hops.clear()


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN", None])
@pytest.mark.parametrize("mode", ["wal", "delete"])
async def test_a_row_that_may_have_to_wait_waits_in_the_thread(
    tmp_path: Path, hops: list[object], mode: str, begin: str | None
) -> None:
    connection: Any = await sqlite_connections.connect(
        str(tmp_path / "some.db"), check_same_thread=False, isolation_level=None
    )
    async with connection.cursor() as cursor:
        await cursor.execute(f"PRAGMA journal_mode = {mode}")
        await cursor.execute("CREATE TABLE things (name)")
        for _ in range(2):  # the second begins where the first was in a transaction
            if begin:
                await cursor.execute(begin)
            hops.clear()
            connection.is_by_key = True
            await cursor.execute("INSERT INTO things (name) VALUES (?)", ("one",))
            connection.is_by_key = False
            assert len(hops) == (0 if (mode, begin) == ("wal", "BEGIN IMMEDIATE") else 1)
            if begin:
                await cursor.execute("COMMIT")
    await connection.close()


async def test_rows_come_one_by_one_as_well(connection: Any) -> None:
    async with connection.cursor() as cursor:
        for last in (2, 1001):
            await cursor.execute(str(NUMBERS), {"last": last})
            assert [await cursor.fetchone() for _ in range(last + 1)] == [*((i,) for i in range(1, last + 1)), None]
        await cursor.execute("SELECT 1 UNION ALL SELECT 2")
        assert await cursor.fetchmany(0) == []
        assert await cursor.fetchmany() == [(1,)]
        assert await cursor.fetchall() == [(2,)]


async def test_what_a_constraint_refuses_breaks_nothing(database: Database, ayu: Caller) -> None:
    async with database.sessions.begin() as session:
        connection = await session.connection()
        for _ in range(2):
            with pytest.raises(IntegrityError):
                await connection.exec_driver_sql(
                    "INSERT INTO users (id, username, email, hashed_password, is_active) VALUES (?, ?, ?, ?, ?)",
                    (ayu.id, "ayu", "ayu@example.com", "!", True),
                )
        assert await session.scalar(select(User.id)) == ayu.id


@pytest.fixture
async def connection() -> AsyncIterator[Any]:
    """One of the connections as SQLAlchemy makes it."""
    connection = await sqlite_connections.connect(":memory:", check_same_thread=False)
    yield connection
    await connection.close()


@pytest.mark.parametrize("what", ["execute", "fetchmany", "fetchall"])
async def test_a_cursor_whose_work_was_given_up_is_closed_after_it(connection: Any, what: str) -> None:
    entered, go = threading.Event(), threading.Event()

    def slow(number: int) -> int:
        if number == (1 if what == "execute" else 1001):
            entered.set()
            go.wait(10)
        return number

    await connection.create_function("slow", 1, slow)
    cursor = await connection.cursor()

    async def work() -> None:
        await cursor.execute(f"WITH n(i) AS ({NUMBERS}) SELECT slow(i) FROM n", {"last": 2000})
        if what == "fetchall":
            await cursor.fetchall()
        for _ in range(3):
            await cursor.fetchmany(1000)

    waiting = asyncio.create_task(work())
    await asyncio.to_thread(entered.wait, 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    closing = asyncio.create_task(cursor.close())
    await asyncio.sleep(0)
    assert not closing.done()
    go.set()
    await closing
    with pytest.raises(sqlite3.ProgrammingError):
        cursor._cursor.fetchone()
    async with connection.cursor() as rows:
        await rows.execute("SELECT 1")
        assert await rows.fetchall() == [(1,)]


async def test_a_cursor_is_closed_at_once_when_its_statement_is_done(connection: Any, hops: list[object]) -> None:
    cursor = await connection.cursor()
    await cursor.execute("SELECT 1")
    await cursor.close()
    assert len(hops) == 1
