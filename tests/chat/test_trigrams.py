"""SQLite's index of trigrams: equal to the messages after every kind of change, used by searches, erased for good."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import delete, event, insert, text, update

from app import clock
from app.db.database import Database
from models import Conversation, Message
from services.accounts import users
from services.chat import conversation_lists, trigrams
from tests.support import raw_sql
from tests.support.accounts import Caller

BLOCKS = "SELECT count(*) FROM message_trigrams_data WHERE instr(block, CAST('zyx' AS BLOB))"


@pytest.fixture
def kind() -> str:
    """The kind of database that has this index."""
    return "sqlite"


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every message is indexed."""
    monkeypatch.setattr(trigrams, "_TAIL", 1)
    monkeypatch.setattr(trigrams, "_BREATH_SECONDS", 0)


async def store(database: Database, *contents: str | None, **more: Any) -> None:
    async with database.sessions.begin() as session:
        for content in contents:
            await session.execute(insert(Message).values(role="user", created_at=clock.now(), content=content, **more))


async def index(database: Database) -> None:
    await trigrams.keep(database, asyncio.Event())


def found(url: str, trigram: str) -> list[int]:
    """The messages that the index names."""
    rows = raw_sql.run(url, f"SELECT rowid FROM message_trigrams WHERE message_trigrams MATCH '{trigram}' ORDER BY 1")
    return [row[0] for row in rows]


def up_to(url: str) -> int:
    return int(raw_sql.value(url, "SELECT value FROM foundation_settings WHERE name = 'trigrams_up_to'"))


async def candidates(database: Database, form: str) -> list[int] | None:
    async def read(session: Any) -> list[int] | None:
        found = await trigrams.candidates(session, [form])
        return None if found is None else sorted(await session.scalars(found))

    return await database.read(read)


async def test_the_server_indexes_messages_in_batches(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trigrams, "_TAIL", 3)
    monkeypatch.setattr(trigrams, "_LAST_OF_BATCH", trigrams._LAST_OF_BATCH.bindparams(messages=2))
    await store(database, "a moon", None, "a MOON", "moor", "moons", "sun")
    await database.transaction(trigrams.advance)
    assert (up_to(database_url), found(database_url, "oon")) == (2, [1])
    await index(database)
    assert (up_to(database_url), found(database_url, "oon")) == (4, [1, 3])  # the tail stays unindexed
    assert await candidates(database, "moon") == [1, 3, 5, 6]


async def test_a_batch_ends_after_enough_characters(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trigrams, "_TAIL", 2)
    monkeypatch.setattr(trigrams, "_LAST_OF_BATCH", trigrams._LAST_OF_BATCH.bindparams(characters=10))
    await store(database, "a" * 11, None, "a" * 6, "a" * 4, "a", "a")
    seen = []
    for _ in range(3):
        await database.transaction(trigrams.advance)
        seen.append(up_to(database_url))
    assert seen == [1, 4, 6]


async def test_the_index_follows_every_change(database: Database, database_url: str, eager: None) -> None:
    await store(database, "first", "second", None, "fourth")
    await index(database)
    async with database.sessions.begin() as session:
        await session.execute(update(Message).where(Message.id == 1).values(content="changed"))
        await session.execute(update(Message).where(Message.id == 2).values(content=None))
        await session.execute(update(Message).where(Message.id == 3).values(content="settled"))
        await session.execute(delete(Message).where(Message.id == 4))
    await store(database, "again")  # with the id of the deleted message
    assert [found(database_url, word) for word in ("fir", "sec", "fou")] == [[], [], []]
    assert [found(database_url, word) for word in ("cha", "set", "aga")] == [[1], [3], [4]]
    raw_sql.run(database_url, "INSERT INTO message_trigrams (message_trigrams, rank) VALUES ('integrity-check', 1)")


async def test_erased_content_leaves_the_file(database: Database, database_url: str, eager: None) -> None:
    await store(database, *("a usual text" for _ in range(50)), "zyxwv", *("a usual text" for _ in range(50)))
    await index(database)
    assert raw_sql.value(database_url, BLOCKS) >= 1
    async with database.sessions.begin() as session:
        await session.execute(update(Message).where(Message.content == "zyxwv").values(content=None))
    await index(database)
    assert raw_sql.value(database_url, BLOCKS) == 0
    assert raw_sql.run(database_url, "SELECT * FROM foundation_settings WHERE name = 'trigrams_to_erase'") == []


@pytest.mark.parametrize("many", [1, 2])
async def test_a_deleted_user_leaves_the_index(
    database: Database, database_url: str, ayu: Caller, eager: None, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr(users, "_MANY", many)
    await store(database, "zyxwv", user_id=ayu.id)
    await store(database, "the moon")
    await index(database)
    await database.transaction(lambda session: users.delete(session, ayu.id))
    assert up_to(database_url) == (0 if many == 1 else 2)
    assert found(database_url, "zyx") == []
    await index(database)
    assert raw_sql.value(database_url, BLOCKS) == 0
    assert found(database_url, "moo") == [2]


async def plan(database: Database, user_id: int, keyword: str) -> list[str]:
    """Search, and return how SQLite finds the conversations with a message."""
    asked: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, values: object, *_more: object) -> None:
        if "count(*) OVER ()" in statement:
            asked.append((statement, values))

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    page = await database.read(lambda session: conversation_lists.listed(session, user_id, 1, 12, keyword))
    assert [conversation.id for conversation in page.conversations] == ["c"]
    async with database.engine.connect() as connection:
        statement, values = asked[0]
        return [str(row[-1]) for row in await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]


@pytest.fixture
async def moon(database: Database, ayu: Caller) -> None:
    """A message of a user."""
    async with database.sessions.begin() as session:
        await session.execute(insert(Conversation).values(id="c", user_id=ayu.id, title="x", model_type="Standard"))
    await store(database, "the moon", conversation_id="c", user_id=ayu.id)


@pytest.mark.parametrize("keyword", ["moon", "oo"])
async def test_searches_ask_the_index(database: Database, ayu: Caller, eager: None, moon: None, keyword: str) -> None:
    await index(database)
    steps = await plan(database, ayu.id, keyword)
    assert any("message_trigrams VIRTUAL TABLE INDEX" in step for step in steps) == (keyword == "moon"), steps
    assert not any(step.startswith("SCAN messages") for step in steps), steps


async def test_many_candidates_are_not_read(
    database: Database, ayu: Caller, eager: None, moon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trigrams, "_MOST_CANDIDATES", 1)
    assert await candidates(database, "moon") == [1]
    await store(database, "another moon")
    assert await candidates(database, "moon") is None
    assert not any("message_trigrams" in step for step in await plan(database, ayu.id, "moon"))


async def test_a_database_without_the_index_is_searched(database: Database, ayu: Caller, moon: None) -> None:
    async with database.sessions.begin() as session:
        await session.execute(text("DELETE FROM foundation_settings WHERE name = 'trigrams_up_to'"))
    await index(database)
    assert not any("message_trigrams" in step for step in await plan(database, ayu.id, "moon"))
