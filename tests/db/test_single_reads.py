"""Single reads: the bare driver gives what SQLAlchemy would, and what breaks it is survived as it is elsewhere."""

import asyncio
import contextlib
import sqlite3
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Select, bindparam, func, select, text
from sqlalchemy.exc import DBAPIError

from app.clock import Month
from app.db import failures
from app.db.database import Database
from models import User, UserMonthlyTokenUsage
from models.users import IS_ACTIVE, ROLE
from services.usage import rollups
from services.usage.rollups import Sums
from tests.support import accounts, raw_sql

Rollup = UserMonthlyTokenUsage
NAME = select(User.username).where(User.id == bindparam("user_id"))
MONTHS = (
    select(User.id, User.username, ROLE, IS_ACTIVE, Rollup.month, Rollup.total_cost, Rollup.last_updated)
    .join(Rollup, Rollup.user_id == User.id)
    .where(User.id == bindparam("user_id"))
    .order_by(Rollup.month)
)


@pytest.fixture
async def ayu(database: Database) -> int:
    """The id of a user with two months."""
    caller = await accounts.add(database, "ayu")
    sums = Sums(10, 5, Decimal("0.1234567891"), 1)
    async with database.sessions.begin() as session:
        await rollups.add_months(session, {(caller.id, Month(2024, month)): sums for month in (1, 2)})
    return caller.id


async def test_the_values_are_those_that_sqlalchemy_gives(database: Database, ayu: int) -> None:
    rows = [tuple(row) for row in await database.fetch(MONTHS, user_id=ayu)]
    assert [row[1:6] for row in rows] == [("ayu", "user", True, month, Decimal("0.1234567891")) for month in (1, 2)]
    expected = await _ordinary(database, MONTHS, user_id=ayu)
    assert rows == expected
    assert [[type(value) for value in row] for row in rows] == [[type(value) for value in row] for row in expected]


async def _ordinary(database: Database, statement: Select[*tuple[Any, ...]], **values: Any) -> list[tuple[Any, ...]]:
    async with database.reads() as session:
        return [tuple(row) for row in await session.execute(statement, values)]


async def test_each_read_sees_what_was_committed_before_it(database: Database, ayu: int) -> None:
    for name in ("bela", "citra"):
        async with database.sessions.begin() as session:
            await session.execute(text("UPDATE users SET username = :name"), {"name": name})
        assert [tuple(row) for row in await database.fetch(NAME, user_id=ayu)] == [(name,)]


async def test_many_at_once_get_each_their_own(database: Database, ayu: int) -> None:
    bela = (await accounts.add(database, "bela")).id
    asked = [ayu, bela] * 50
    answers = await asyncio.gather(*(database.fetch(NAME, user_id=user_id) for user_id in asked))
    assert [rows[0][0] for rows in answers] == ["ayu", "bela"] * 50


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_cut_connections_are_replaced(database: Database, ayu: int) -> None:
    await asyncio.gather(*(database.fetch(NAME, user_id=ayu) for _ in range(10)))
    async with database.reads() as session:
        others = "pid <> pg_backend_pid() AND datname = current_database()"
        cut = await session.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))
        assert len(cut.all()) >= 2
    answers = await asyncio.gather(*(database.fetch(NAME, user_id=ayu) for _ in range(10)))
    assert [rows[0][0] for rows in answers] == ["ayu"] * 10


async def test_a_change_of_the_schema_does_not_break_a_known_statement(
    database: Database, ayu: int, database_url: str, kind: str
) -> None:
    await database.fetch(NAME, user_id=ayu)
    changed = "ALTER COLUMN username TYPE text" if kind == "postgresql" else "ADD COLUMN nickname TEXT"
    await asyncio.to_thread(raw_sql.run, database_url, f"ALTER TABLE users {changed}")
    assert (await database.fetch(NAME, user_id=ayu))[0][0] == "ayu"


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_locked_file_is_waited_for_without_holding_up_others(
    database: Database, ayu: int, database_url: str
) -> None:
    await database.engine.dispose()  # the journal's mode changes only where nobody else is
    other = sqlite3.connect(raw_sql.path_of(database_url), isolation_level=None)
    with contextlib.closing(other):
        assert other.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
        other.execute("BEGIN EXCLUSIVE")
        reading = asyncio.create_task(_fetched(database, ayu))
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not reading.done()
        other.execute("ROLLBACK")
        assert await reading == [("ayu",)]


async def _fetched(database: Database, user_id: int) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await database.fetch(NAME, user_id=user_id)]


async def test_a_mistake_is_not_asked_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Database, "read", None)
    mistaken = select(func.no_such_function(User.id))
    with pytest.raises(failures.FAILURES) as raised:
        await database.fetch(mistaken)
    assert not isinstance(raised.value, DBAPIError)
    assert not failures.is_unavailable(raised.value)
