"""The messages of a conversation over HTTP, in pages that are bounded by count and by bytes."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from app import clock
from app.db.database import Database
from models import Conversation, Message
from models.base import AnyText
from services.chat import conversations
from tests.support import problems
from tests.support.accounts import Caller

pytestmark = pytest.mark.any_database

MIB = 2**20


async def store(database: Database, caller: Caller, contents: Sequence[str | None]) -> list[int]:
    """Store a conversation of the id `talk`; return the ids of its messages."""
    async with database.sessions.begin() as session:
        values = {"id": "talk", "user_id": caller.id, "title": "t", "model_type": "Standard"}
        await session.execute(insert(Conversation).values(**values))
        row = {"conversation_id": "talk", "user_id": caller.id, "role": "user", "created_at": clock.now()}
        ids = [
            await session.scalar(insert(Message).values(content=content, **row).returning(Message.id))
            for content in contents
        ]
    return [id_ for id_ in ids if id_ is not None]


async def page(client: httpx.AsyncClient, caller: Caller, **query: Any) -> dict[str, Any]:
    answer = await client.get("/conversations/talk", headers=caller.headers, params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def pages(client: httpx.AsyncClient, caller: Caller, **query: Any) -> list[list[int]]:
    """Return the ids of the messages, page by page, as a client follows the cursor."""
    found: list[list[int]] = []
    before: dict[str, Any] = {}
    while True:
        content = await page(client, caller, **query, **before)
        found.append([message["id"] for message in content["messages"]])
        assert content["has_more"] == (content["next_before"] is not None)
        if not content["has_more"]:
            return found
        before = {"before": content["next_before"]}


async def test_a_small_conversation_is_one_page(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    ids = await store(database, ayu, ["x"] * conversations.MAX_MESSAGES)
    content = await page(client, ayu)
    assert [message["id"] for message in content["messages"]] == ids
    assert (content["has_more"], content["next_before"]) == (False, None)


async def test_a_page_ends_at_the_most_messages(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    ids = await store(database, ayu, ["x"] * (conversations.MAX_MESSAGES + 1))
    assert await pages(client, ayu) == [ids[1:], ids[:1]]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
async def test_the_pages_are_all_messages_in_order(
    client: httpx.AsyncClient, database: Database, ayu: Caller, limit: int
) -> None:
    ids = await store(database, ayu, ["a", None, "", "b", "c", "d", "e"])
    found = await pages(client, ayu, limit=limit)
    assert [id_ for ids in reversed(found) for id_ in ids] == ids
    assert all(len(page) == limit for page in found[:-1])
    assert 1 <= len(found[-1]) <= limit


async def test_a_page_ends_at_the_most_bytes(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    three_bytes = "\u20ac" * (MIB // 3)
    ids = await store(database, ayu, [three_bytes] * 9 + ["x" * 5 * MIB, "x", "y"])
    assert await pages(client, ayu) == [ids[10:], ids[9:10], ids[5:9], ids[1:5], ids[:1]]


@pytest.mark.usefixtures("compiled_again")
async def test_no_content_beyond_the_page_is_read(
    client: httpx.AsyncClient, database: Database, ayu: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store(database, ayu, ["x" * MIB] * 12)
    read: list[int] = []
    convert = AnyText.process_result_value

    def counted(self: AnyText, value: Any, dialect: Any) -> str | None:
        read.append(len(value or ""))
        return convert(self, value, dialect)

    monkeypatch.setattr(AnyText, "process_result_value", counted)
    callers = 10
    answers = await asyncio.gather(*(page(client, ayu) for _ in range(callers)))
    most = conversations.MAX_BYTES
    assert sum(read) == callers * most
    assert {sum(len(message["content"]) for message in answer["messages"]) for answer in answers} == {most}


async def test_an_empty_conversation_has_an_empty_page(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    (only,) = await store(database, ayu, ["x"])
    assert await pages(client, ayu, before=only) == [[]]
    assert await pages(client, ayu, before=1) == [[]]
    assert await pages(client, ayu, before=2**63 - 1) == [[only]]


@pytest.mark.parametrize(
    "query",
    [{"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"before": 0}, {"before": -1}, {"before": 2**63}, {"before": "x"}],
)
async def test_cursors_that_cannot_be_are_refused(
    client: httpx.AsyncClient, ayu: Caller, query: dict[str, Any]
) -> None:
    answer = await client.get("/conversations/talk", headers=ayu.headers, params=query)
    assert list(problems.check(answer, 422)["errors"]) == list(query)


async def test_a_cursor_shows_nothing_of_another_user(
    client: httpx.AsyncClient, database: Database, ayu: Caller, bela: Caller
) -> None:
    (only,) = await store(database, ayu, ["x"])
    query = {"before": only + 1}
    problems.check(await client.get("/conversations/talk", headers=bela.headers, params=query), 404)
