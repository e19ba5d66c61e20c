"""Batches of old rows that were read before the lock was taken: as good as if they had been read after it."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app import migrations
from app.database import Database
from services import adoption, backfill, bulk_adoption
from services.backfill import Scope
from tests import old_databases, old_messages, raw_sql
from tests.old_databases import OldDatabase

MOVED = datetime(2023, 3, 3, 3, 3, 3, tzinfo=UTC)


@pytest.fixture
def old(empty_database_url: str) -> OldDatabase:
    """An old database with token columns."""
    return old_databases.build(empty_database_url, 3, rows=30)


@pytest.fixture
async def database(old: OldDatabase) -> AsyncIterator[Database]:
    """The same, at the newest schema."""
    await migrations.upgrade(old.url)
    opened = Database.open(old.url)
    yield opened
    await opened.close()


async def run(database: Database) -> None:
    await backfill.run(database, Scope(), 10, ZoneInfo("UTC"), lambda _progress: None)


async def test_what_others_change_after_a_batch_was_read_is_adopted_as_it_is_then(
    old: OldDatabase, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = [item for item in old.messages if item.owner and item.carries_usage and not item.reason]
    costly, late, other, gone = usual[-4:]
    changed = {
        costly.id: replace(costly, model_cost=2.5),
        late.id: replace(late, instant=MOVED),
        other.id: replace(other, owner=next(user for user in old_databases.USERS if user != other.owner)),
        gone.id: replace(gone, input_tokens=None),
    }
    changes = (
        f"UPDATE messages SET model_cost = 2.5 WHERE id = {costly.id}",
        f"UPDATE messages SET created_at = '{MOVED:%Y-%m-%d %H:%M:%S}' WHERE id = {late.id}",
        "INSERT INTO conversations (id, user_id, title, model_type)"
        f" VALUES ('new', {changed[other.id].owner}, '', 'Fast')",
        f"UPDATE messages SET conversation_id = 'new' WHERE id = {other.id}",
        f"DELETE FROM messages WHERE id = {gone.id}",
    )
    look_ahead = adoption.look_ahead
    looks = 0

    async def looked(*args: Any, **which: Any) -> Any:
        nonlocal looks
        found = await look_ahead(*args, **which)
        looks += 1
        if looks == 1:
            await asyncio.to_thread(raw_sql.run, old.url, *changes)
        return found

    monkeypatch.setattr(adoption, "look_ahead", looked)
    await run(database)
    expected = old_messages.months(changed.get(item.id, item) for item in old.messages)
    assert await asyncio.to_thread(old_databases.rollup, old.url) == expected
    assert expected != old.months()


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_where_nobody_else_writes_a_batch_is_read_once_and_nobody_would_wait_for_that(
    old: OldDatabase, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, batches = bulk_adoption.collect, 0

    async def collected(*of_what: Any) -> None:
        nonlocal batches
        batches += 1
        await collect(*of_what)
        with contextlib.closing(sqlite3.connect(raw_sql.path_of(old.url), isolation_level=None, timeout=0)) as other:
            other.execute("BEGIN IMMEDIATE")

    monkeypatch.setattr(bulk_adoption, "collect", collected)
    monkeypatch.setattr(adoption, "BATCH_ROWS", 50)
    await run(database)
    assert batches == 2, "of 50 rows, and of the others"
    assert old_databases.rollup(old.url) == old.months()
