"""Lists of conversations over HTTP, as the frontend of the earlier backend reads them: paged, counted, searched."""

from typing import Any

import httpx
import pytest
from sqlalchemy import insert, update

from app import clock
from app.db.database import Database
from models import Conversation, Message
from services.chat import conversation_lists
from tests.support.accounts import Caller

pytestmark = pytest.mark.any_database

CONVERSATION = {
    *("id", "title", "model_type", "category_name", "created_at", "updated_at", "message_count"),
    *("parent_conversation_id", "edited_message_id", "is_branch", "related_chats"),
}
MESSAGE = {
    *("id", "role", "content", "image_urls", "document_context", "chart_data", "input_tokens", "output_tokens"),
    *("total_tokens", "model_cost", "created_at", "parent_message_id", "branch_id", "is_active_branch"),
    *("has_branches",),
}


async def store(database: Database, caller: Caller, id_: str, title: str, *contents: str, **more: Any) -> None:
    """Store a conversation with messages."""
    now = clock.now()
    values = {"id": id_, "user_id": caller.id, "title": title, "model_type": "Standard", "updated_at": now}
    async with database.sessions.begin() as session:
        await session.execute(insert(Conversation).values(**values, created_at=now, **more))
        row = {"conversation_id": id_, "user_id": caller.id, "role": "user", "created_at": now}
        for content in contents:
            await session.execute(insert(Message).values(content=content, **row))


async def get(client: httpx.AsyncClient, caller: Caller, path: str = "/conversations", **query: Any) -> dict[str, Any]:
    answer = await client.get(path, headers=caller.headers, params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def found_by(client: httpx.AsyncClient, caller: Caller, keyword: str) -> set[str]:
    content = await get(client, caller, keyword=keyword)
    ids = {item["id"] for item in content["data"]}
    assert content["total"] == content["pagination"]["total_count"] == len(ids)
    return ids


async def test_a_list_has_the_keys_of_both_forms(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    for number in range(5):
        await store(database, ayu, f"c{number}", "a title", *["said"] * number)
    content = await get(client, ayu, page=2, limit=2)
    assert content["data"] == content["conversations"]
    assert [(item["id"], item["message_count"]) for item in content["data"]] == [("c2", 2), ("c1", 1)]
    assert all(item.keys() == CONVERSATION for item in content["data"])
    assert content["pagination"] == {
        **{"page": 2, "limit": 2, "total_count": 5, "total_pages": 3},
        **{"has_next": True, "has_prev": True},
    }
    assert (content["page"], content["limit"], content["total"], content["has_more"]) == (2, 2, 5, True)


async def test_an_empty_list_has_no_pages(client: httpx.AsyncClient, ayu: Caller) -> None:
    content = await get(client, ayu)
    assert content["data"] == []
    assert content["pagination"] == {
        **{"page": 1, "limit": 20, "total_count": 0, "total_pages": 0},
        **{"has_next": False, "has_prev": False},
    }


async def test_a_keyword_is_looked_for_in_titles_and_messages(
    client: httpx.AsyncClient, database: Database, ayu: Caller, bela: Caller
) -> None:
    await store(database, ayu, "title", "The Moon")
    await store(database, ayu, "message", "x", "about MOONS")
    await store(database, ayu, "neither", "x", "about stars")
    await store(database, ayu, "deleted", "moon", "moon", deleted_at=clock.now())
    await store(database, bela, "of bela", "moon", "moon")
    for keyword in ("moon", "MOON", " Moon "):
        assert await found_by(client, ayu, keyword) == {"title", "message"}
    assert await found_by(client, ayu, "sun") == set()
    assert await found_by(client, ayu, " ") == {"title", "message", "neither"}


@pytest.mark.parametrize("keyword", ["50%", "a_b", "a/b", "a\\b", "it's", 'a"b', "[x]", "*", "?"])
async def test_every_character_of_a_keyword_is_plain(
    client: httpx.AsyncClient, database: Database, ayu: Caller, keyword: str
) -> None:
    await store(database, ayu, "title", f"before {keyword} after")
    await store(database, ayu, "message", "x", f"before {keyword} after")
    await store(database, ayu, "other", "500 aXb axb itXs", "500 aXb axb itXs")
    assert await found_by(client, ayu, keyword) == {"title", "message"}


@pytest.mark.parametrize(("said", "keyword"), [("ÉTÉ", "été"), ("été", "ÉTÉ"), ("Été", "été"), ("Ärger", "ÄRGER")])
async def test_other_letters_are_found_in_either_case(
    client: httpx.AsyncClient, database: Database, ayu: Caller, said: str, keyword: str
) -> None:
    await store(database, ayu, "found", "x", f"un {said} chaud")
    assert await found_by(client, ayu, keyword) == {"found"}


async def test_counts_and_pages_are_of_what_was_found(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    for number in range(7):
        await store(database, ayu, f"c{number}", "odd" if number % 2 else "even", "x", "y")
    content = await get(client, ayu, keyword="odd", limit=2)
    assert content["pagination"] == {
        **{"page": 1, "limit": 2, "total_count": 3, "total_pages": 2},
        **{"has_next": True, "has_prev": False},
    }
    assert [item["message_count"] for item in content["data"]] == [2, 2]


async def test_a_page_after_the_last_one_has_the_count(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    await store(database, ayu, "talk", "moon", "x")
    for query in ({}, {"keyword": "moon"}):
        content = await get(client, ayu, page=9, **query)
        assert (content["data"], content["pagination"]["total_count"]) == ([], 1)
    assert (await get(client, ayu, keyword="sun"))["pagination"]["total_count"] == 0


async def test_a_search_shows_the_newest_messages_with_the_keyword(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    await store(database, ayu, "talk", "x", *(f"moon {number}" for number in range(8)), "sun")
    await store(database, ayu, "title", "moon", "sun")
    by_id = {item["id"]: item for item in (await get(client, ayu, keyword="moon"))["data"]}
    related = by_id["talk"]["related_chats"]
    assert [message["content"] for message in related] == [f"moon {number}" for number in (7, 6, 5, 4, 3)]
    assert all(message.keys() == {"id", "role", "content", "document_context", "created_at"} for message in related)
    assert by_id["title"]["related_chats"] == []
    assert {item["related_chats"] for item in (await get(client, ayu))["data"]} == {None}


async def test_a_long_message_is_shown_around_the_keyword(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    await store(database, ayu, "talk", "x", "a" * 100_000 + " the Moon " + "b" * 100_000)
    (found,) = (await get(client, ayu, keyword="moon"))["data"]
    (shown,) = found["related_chats"]
    assert len(shown["content"]) == conversation_lists.EXCERPT
    assert "a the Moon b" in shown["content"]


async def test_messages_have_the_keys_of_the_earlier_backend(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    body = {"message": "What is the moon?", "stream": False}
    id_ = (await client.post("/chat", headers=ayu.headers, json=body)).json()["conversation_id"]
    content = await get(client, ayu, f"/conversations/{id_}")
    assert content.keys() >= CONVERSATION - {"message_count", "related_chats"} | {"messages"}
    question, answer = content["messages"]
    assert question.keys() == answer.keys() >= MESSAGE
    for message in (question, answer):
        assert (message["image_urls"], message["document_context"], message["chart_data"]) == (None, None, None)
        assert (message["is_active_branch"], message["has_branches"]) == (True, False)
    assert (question["model_cost"], question["total_tokens"]) == (None, None)


async def test_a_priced_answer_has_its_cost_as_a_number(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    await store(database, ayu, "talk", "x")
    record = {"id": "1", "user_id": ayu.id, "model": "m", "input_tokens": 3, "output_tokens": 4, "cost": "0.25"}
    body = {"records": [record | {"conversation_id": "talk"}]}
    assert (await client.post("/usage/records", headers=service.headers, json=body)).status_code == 200
    (message,) = (await get(client, ayu, "/conversations/talk"))["messages"]
    assert (message["model_cost"], message["cost"], message["total_tokens"]) == (0.25, "0.25", 7)


CONTEXTS = {
    '{"documents": [], "chart_data": {"x": 1}}': ({"documents": [], "chart_data": {"x": 1}}, {"x": 1}),
    "[1]": (None, None),
    "no JSON": (None, None),
    '{"a": NaN}': (None, None),
    '{"a": 1e999}': (None, None),
    '{"a": "\\ud800"}': (None, None),
    '{"a": ' * 100 + "1" + "}" * 100: (None, None),
    "[" * 100_000: (None, None),
}


@pytest.mark.parametrize("stored", CONTEXTS, ids=range(len(CONTEXTS)))
async def test_adopted_messages_show_their_context(
    client: httpx.AsyncClient, database: Database, ayu: Caller, stored: str
) -> None:
    await store(database, ayu, "talk", "x", "said")
    old = {"document_context": stored, "image_urls": '["/images/1.png"]', "branch_id": "b", "is_active_branch": False}
    async with database.sessions.begin() as session:
        await session.execute(update(Message).values(parent_message_id=7, **old))
    (message,) = (await get(client, ayu, "/conversations/talk"))["messages"]
    assert (message["document_context"], message["chart_data"]) == CONTEXTS[stored]
    assert message["image_urls"] == ["/images/1.png"]
    assert (message["parent_message_id"], message["branch_id"], message["is_active_branch"]) == (7, "b", False)


async def test_adopted_branches_name_their_origin(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    await store(database, ayu, "root", "x", "first", "second")
    second = (await get(client, ayu, "/conversations/root"))["messages"][1]["id"]
    await store(database, ayu, "branch", "x (Edited)", parent_conversation_id="root", edited_message_id=second)
    branch, root = (await get(client, ayu))["data"]
    assert (branch["is_branch"], branch["parent_conversation_id"], branch["edited_message_id"]) == (
        True,
        "root",
        second,
    )
    assert (root["is_branch"], root["parent_conversation_id"], root["edited_message_id"]) == (False, None, None)
    shown = (await get(client, ayu, "/conversations/root"))["messages"]
    assert [message["has_branches"] for message in shown] == [False, True]


async def test_deleting_erases_images_and_document_context(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    await store(database, ayu, "talk", "x", "said")
    async with database.sessions.begin() as session:
        await session.execute(update(Message).values(document_context='{"a": 1}', image_urls='["a"]'))
    assert (await client.delete("/conversations/talk", headers=ayu.headers)).status_code == 204
    async with database.sessions.begin() as session:
        row = (await session.execute(update(Message).values(role="user").returning(Message))).scalar_one()
        assert (row.content, row.document_context, row.image_urls) == (None, None, None)
