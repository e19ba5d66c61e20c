"""SQLite's index of trigrams: equal to the messages after every kind of change, used by searches, erased for good."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import delete, insert, text, update

from app import clock
from app.db.database import Database
from models import Conversation, Message
from services.chat import conversation_lists, searches, trigrams
from tests.support import raw_sql, searching
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


async def found(database: Database, form: str) -> list[int]:
    """The messages that the index names."""
    return sorted(await database.read(lambda session: session.scalars(trigrams.candidates([form]))))


async def up_to(database: Database) -> int | None:
    return await database.read(trigrams.up_to)


async def test_the_server_indexes_messages_in_batches(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigrams, "_TAIL", 3)
    monkeypatch.setattr(trigrams, "_BATCH", 2)
    await store(database, "a moon", None, "a MOON", "moor", "moons", "moons")
    await database.transaction(trigrams.advance)
    assert (await up_to(database), await found(database, "moon")) == (2, [1])
    await index(database)
    assert (await up_to(database), await found(database, "moon")) == (4, [1, 3])  # the tail stays unindexed


async def test_a_batch_holds_few_characters_or_one_message(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigrams, "_TAIL", 3)
    monkeypatch.setattr(trigrams, "_BATCH_CHARACTERS", 10)
    await store(database, *("a" * length for length in (11, 6, 4, 1, 1, 1)))
    seen = []
    for _ in range(3):
        await database.transaction(trigrams.advance)
        seen.append(await up_to(database))
    assert seen == [1, 3, 6]


async def test_the_index_follows_every_change(database: Database, eager: None) -> None:
    await store(database, "first", "second", None, "fourth")
    await index(database)
    async with database.sessions.begin() as session:
        await session.execute(update(Message).where(Message.id == 1).values(content="changed"))
        await session.execute(update(Message).where(Message.id == 2).values(content=None))
        await session.execute(update(Message).where(Message.id == 3).values(content="settled"))
        await session.execute(delete(Message).where(Message.id == 4))
    await store(database, "again")  # with the id of the deleted message
    assert [await found(database, word) for word in ("first", "second", "fourth")] == [[], [], []]
    assert [await found(database, word) for word in ("changed", "settled", "again")] == [[1], [3], [4]]


async def test_erased_content_leaves_the_file(database: Database, database_url: str, eager: None) -> None:
    await store(database, *("a usual text" for _ in range(50)), "zyxwv", *("a usual text" for _ in range(50)))
    await index(database)
    assert raw_sql.value(database_url, BLOCKS) >= 1
    async with database.sessions.begin() as session:
        await session.execute(update(Message).where(Message.content == "zyxwv").values(content=None))
    await index(database)
    assert raw_sql.value(database_url, BLOCKS) == 0
    assert raw_sql.run(database_url, "SELECT * FROM foundation_settings WHERE name = 'trigrams_to_erase'") == []


async def test_searches_ask_the_index(
    database: Database, ayu: Caller, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    monkeypatch.setattr(searches, "_SAMPLE", 0)
    async with database.sessions.begin() as session:
        await session.execute(insert(Conversation).values(id="c", user_id=ayu.id, title="x", model_type="Standard"))
    await store(database, "the moon", conversation_id="c", user_id=ayu.id)
    await index(database)
    steps = (await searching.plan(database, ayu.id, "moon")).splitlines()
    assert any("message_trigrams VIRTUAL TABLE INDEX" in step for step in steps), steps
    assert not any(step.startswith("SCAN messages") for step in steps), steps


async def test_a_database_without_the_index_is_searched(
    database: Database, ayu: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "_SAMPLE", 0)
    async with database.sessions.begin() as session:
        await session.execute(text("DELETE FROM foundation_settings WHERE name = 'trigrams_up_to'"))
        await session.execute(insert(Conversation).values(id="c", user_id=ayu.id, title="x", model_type="Standard"))
    await store(database, "the moon", conversation_id="c", user_id=ayu.id)
    await index(database)
    page = await database.read(lambda session: conversation_lists.listed(session, ayu.id, 1, 12, "moon"))
    assert [conversation.id for conversation in page.conversations] == ["c"]
