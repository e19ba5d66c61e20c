"""Model categories: four to begin with, the user's own, and which model a chat asks by them."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, text

from app.db.database import Database
from models import ModelCategory
from tests.support import openai_server, problems
from tests.support.accounts import Caller
from tests.support.openai_server import OpenAIServer

pytestmark = pytest.mark.any_database

SONNET = "anthropic/claude-sonnet-4"
FIRST = ["FAST", "STANDARD", "FAST_REASONING", "REASONING"]
NEW = {"category_name": "Letters", "display_name": "Letters", "model_id": SONNET}


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The application asks the tests' model, by another name for the fast one."""
    return openai_server.settings(database_url, model) | {"model_names": "Fast=gpt-4o-mini,own/name=gpt-4.1"}


async def listed(client: httpx.AsyncClient, caller: Caller) -> list[dict[str, Any]]:
    answer = await client.get("/user-model-categories", headers=caller.headers)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["total_count"] == len(body["categories"])
    found: list[dict[str, Any]] = body["categories"]
    return found


async def add(client: httpx.AsyncClient, caller: Caller, **body: Any) -> httpx.Response:
    return await client.post("/user-model-categories", json=NEW | body, headers=caller.headers)


async def test_a_user_starts_with_four(client: httpx.AsyncClient, ayu: Caller) -> None:
    found = await listed(client, ayu)
    assert [category["category_name"] for category in found] == FIRST
    assert [category["display_name"] for category in found] == ["Fast", "Standard", "Fast Reasoning", "Reasoning"]
    assert [category["model_id"] for category in found] == ["Fast", "gpt-4o", "gpt-4o", "gpt-4o"]
    assert found[1]["model_pricing"] == {
        "prompt_price": 0.0000025,
        "completion_price": 0.00001,
        "request_price": 0,
        "context_length": 128000,
    }
    assert await listed(client, ayu) == found


async def test_first_requests_at_once_make_four(client: httpx.AsyncClient, ayu: Caller) -> None:
    found = await asyncio.gather(*(listed(client, ayu) for _ in range(4)))
    assert all(each == found[0] for each in found)
    assert len(found[0]) == len(FIRST)


async def test_categories_are_added_changed_and_deleted(client: httpx.AsyncClient, ayu: Caller, bela: Caller) -> None:
    await listed(client, ayu)
    added = (await add(client, ayu)).json()
    assert added["model_name"] == "Anthropic: Claude Sonnet 4"
    path = f"/user-model-categories/{added['id']}"
    changed = (await client.put(path, json={"model_id": "gpt-4o"}, headers=ayu.headers)).json()
    assert (changed["id"], changed["model_id"], changed["display_name"]) == (added["id"], "gpt-4o", "Letters")
    assert (await listed(client, ayu))[-1] == changed
    for method in ("PUT", "DELETE"):
        problems.check(await client.request(method, path, json={}, headers=bela.headers), 404)
    deleted = await client.delete(path, headers=ayu.headers)
    assert (deleted.status_code, set(deleted.json())) == (200, {"message"})
    assert [category["category_name"] for category in await listed(client, ayu)] == FIRST
    for method in ("PUT", "DELETE"):
        problems.check(await client.request(method, path, json={}, headers=ayu.headers), 404)
    again = (await add(client, ayu, display_name="New")).json()
    assert (await listed(client, ayu))[-1] == again


async def test_the_four_come_before_an_own_one(client: httpx.AsyncClient, ayu: Caller) -> None:
    await add(client, ayu)
    assert [category["category_name"] for category in await listed(client, ayu)] == [*FIRST, "Letters"]


async def test_deleted_first_categories_stay_deleted(client: httpx.AsyncClient, ayu: Caller) -> None:
    for category in await listed(client, ayu):
        await client.delete(f"/user-model-categories/{category['id']}", headers=ayu.headers)
    assert await listed(client, ayu) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"category_name": "FAST"}, 409),
        ({"model_id": "nothing/like-it"}, 422),
        ({"category_name": " "}, 422),
        ({"display_name": "x" * 256}, 422),
        ({"model_id": None}, 422),
        ({"description": "\x00"}, 422),
    ],
)
async def test_what_is_no_category_is_refused(
    client: httpx.AsyncClient, ayu: Caller, body: dict[str, Any], status: int
) -> None:
    before = await listed(client, ayu)
    problems.check(await add(client, ayu, **body), status)
    assert await listed(client, ayu) == before


async def test_old_categories_are_shown(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    old = {"user_id": ayu.id, "display_name": "Old", "model_id": "gone/model"}
    async with database.sessions.begin() as session:
        await session.execute(insert(ModelCategory).values([old | {"id": 7, "category_name": "OLD"}]))
        await session.execute(
            insert(ModelCategory).values([old | {"id": 8, "category_name": "NO", "is_active": False}])
        )
    (shown,) = await listed(client, ayu)
    assert (shown["id"], shown["model_name"], shown["sort_order"], shown["is_active"]) == (7, "gone/model", 0, True)
    assert shown["model_pricing"]["prompt_price"] is None
    assert (await add(client, ayu, category_name="NO")).json()["id"] == 8


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("column", ["category_name", "display_name", "description", "sort_order", "updated_at"])
@pytest.mark.sampled(2)
async def test_a_category_with_any_value_is_shown(
    client: httpx.AsyncClient, database: Database, ayu: Caller, column: str
) -> None:
    fast = (await listed(client, ayu))[0]["id"]
    for value in ("x'41ff'", "'word'", "''", "1.5", "-1", str(2**63 - 1), "9e999"):
        async with database.sessions.begin() as session:
            await session.execute(text(f"UPDATE user_model_categories SET {column} = {value} WHERE id = {fast}"))
        assert fast in [category["id"] for category in await listed(client, ayu)]
        added = (await add(client, ayu, category_name=f"{column} {value}")).json()
        assert added["id"] in [category["id"] for category in await listed(client, ayu)]


async def test_a_category_with_a_slash_in_its_name_has_prices(client: httpx.AsyncClient, ayu: Caller) -> None:
    assert (await add(client, ayu, category_name="a/b")).status_code < 300
    for path in ("a/b", "a%2Fb"):
        info = await client.get(f"/user-model-categories/{path}/pricing-info", headers=ayu.headers)
        assert (info.status_code, info.json().get("category_name")) == (200, "a/b")


async def test_prices_of_a_category_and_of_a_request(client: httpx.AsyncClient, ayu: Caller) -> None:
    await listed(client, ayu)
    info = (await client.get("/user-model-categories/STANDARD/pricing-info", headers=ayu.headers)).json()
    assert (info["model_id"], info["input_cost"], info["cost_per_1k_output"]) == ("gpt-4o", 2.5, 0.01)
    problems.check(await client.get("/user-model-categories/NONE/pricing-info", headers=ayu.headers), 404)
    body = {"model_id": SONNET, "prompt_tokens": 1000, "max_completion_tokens": 100}
    estimate = (await client.post("/user-model-categories/estimate-cost", json=body, headers=ayu.headers)).json()
    costs = {name: value for name, value in estimate.items() if name.startswith("estimated_")}
    assert costs == {
        "estimated_input_cost": 0.003,
        "estimated_output_cost": 0.0015,
        "estimated_total_cost": 0.0045,
        "estimated_completion_tokens": 100,
    }
    assert estimate["cost_breakdown"] == {"input_cost_per_token": 0.000003, "output_cost_per_token": 0.000015}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model_id": "no/model", "prompt_tokens": 1}, 404),
        ({"model_id": SONNET, "prompt_tokens": -1}, 422),
        ({"model_id": SONNET, "prompt_tokens": 10**30}, 422),
        ({"model_id": SONNET, "prompt_tokens": 1.5}, 422),
        ({"model_id": SONNET}, 422),
    ],
)
async def test_what_cannot_be_estimated_is_refused(
    client: httpx.AsyncClient, ayu: Caller, body: dict[str, Any], status: int
) -> None:
    answer = await client.post("/user-model-categories/estimate-cost", json=body, headers=ayu.headers)
    problems.check(answer, status)


@pytest.mark.parametrize(
    ("wanted", "asked", "category"),
    [
        ("Fast", "gpt-4o-mini", "Fast"),
        (SONNET, "gpt-4o", "Letters"),
        ("own/name", "gpt-4.1", "Letters"),
    ],
)
async def test_a_chat_in_a_category_asks_its_model(
    client: httpx.AsyncClient, ayu: Caller, model: OpenAIServer, wanted: str, asked: str, category: str
) -> None:
    found = await listed(client, ayu)
    chosen = found[0] if category == "Fast" else (await add(client, ayu, model_id=wanted)).json()
    for more in ({}, {"model_id": wanted}):
        form = {"message": "Hi", "category_id": str(chosen["id"]), "stream": "false"} | more
        answer = await client.post("/chat", data=form, headers=ayu.headers)
        assert answer.status_code == 200, answer.text
        assert model.requests[-1].body["model"] == asked
        conversation = await client.get(f"/conversations/{answer.json()['conversation_id']}", headers=ayu.headers)
        assert (conversation.json()["model_type"], conversation.json()["category_name"]) == (category, category)
        (named, *_) = (await client.get("/conversations", headers=ayu.headers)).json()["data"]
        assert named["category_name"] == category


async def test_a_conversation_shows_the_name_of_today(client: httpx.AsyncClient, ayu: Caller) -> None:
    added = (await add(client, ayu)).json()
    path, body = f"/user-model-categories/{added['id']}", {"message": "Hi", "category_id": added["id"], "stream": False}
    answer = (await client.post("/chat", json=body, headers=ayu.headers)).json()
    await client.put(path, json={"display_name": "Post"}, headers=ayu.headers)
    await client.delete(path, headers=ayu.headers)
    shown = (await client.get(f"/conversations/{answer['conversation_id']}", headers=ayu.headers)).json()
    assert (shown["category_name"], shown["model_type"]) == ("Post", "Letters")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_a_changed_category_does_not_change_a_repeat(
    client: httpx.AsyncClient, ayu: Caller, model: OpenAIServer, method: str
) -> None:
    added, other = [(await add(client, ayu, category_name=name, model_id="own/name")).json() for name in ("A", "B")]
    headers = ayu.headers | {"Idempotency-Key": "once"}
    body = {"message": "Hi", "category_id": added["id"], "stream": False}
    first = await client.post("/chat", json=body, headers=headers)
    path = f"/user-model-categories/{added['id']}"
    await client.request(method, path, json={"model_id": "gpt-4o"}, headers=ayu.headers)
    again = await client.post("/chat", json=body, headers=headers)
    assert (again.status_code, again.json()) == (200, first.json())
    for changed in ({"category_id": other["id"]}, {"model_id": "own/name"}, {"category_id": None}):
        problems.check(await client.post("/chat", json=body | changed, headers=headers), 422)
    assert len(model.requests) == 1


async def test_a_category_of_another_user_is_ignored(
    client: httpx.AsyncClient, ayu: Caller, bela: Caller, model: OpenAIServer
) -> None:
    fast = (await listed(client, bela))[0]["id"]
    answer = await client.post(
        "/chat", json={"message": "Hi", "category_id": fast, "stream": False}, headers=ayu.headers
    )
    assert answer.status_code == 200, answer.text
    assert model.requests[-1].body["model"] == "gpt-4o"


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ({"model_id": "own/name"}, "gpt-4.1"),
        ({"model": "Fast"}, "gpt-4o-mini"),
        ({"model": "o3"}, "o3"),
        ({}, "gpt-4o"),
    ],
)
async def test_an_edit_asks_the_model_that_the_question_named(
    client: httpx.AsyncClient, ayu: Caller, model: OpenAIServer, named: dict[str, str], asked: str
) -> None:
    async def question(conversation_id: str, number: int) -> int:
        shown = (await client.get(f"/conversations/{conversation_id}", headers=ayu.headers)).json()
        return int([message["id"] for message in shown["messages"] if message["role"] == "user"][number])

    first = {"message": "Hi", "stream": False, "model": "gpt-4.1-nano"}
    place = (await client.post("/chat", json=first, headers=ayu.headers)).json()["conversation_id"]
    second = {"message": "Ho", "stream": False, "conversation_id": place} | named
    assert (await client.post("/chat", json=second, headers=ayu.headers)).status_code == 200
    for number, expected in ((1, asked), (0, "gpt-4.1-nano"), (1, asked)):
        message_id = await question(place, number)
        edited = await client.put(f"/messages/{message_id}", json={"content": "edited"}, headers=ayu.headers)
        assert edited.status_code == 200, edited.text
        assert model.requests[-1].body["model"] == expected
    branch = edited.json()["conversation_id"]
    for number, expected in ((1, asked), (0, "gpt-4.1-nano")):  # the branch of a branch
        message_id = await question(branch, number)
        await client.put(f"/messages/{message_id}", json={"content": "again"}, headers=ayu.headers)
        assert model.requests[-1].body["model"] == expected


async def test_an_edit_asks_the_model_of_a_renamed_category(
    client: httpx.AsyncClient, ayu: Caller, model: OpenAIServer
) -> None:
    added = (await add(client, ayu, model_id="own/name")).json()
    body = {"message": "Hi", "category_id": added["id"], "stream": False}
    answer = (await client.post("/chat", json=body, headers=ayu.headers)).json()
    await client.put(f"/user-model-categories/{added['id']}", json={"display_name": "New"}, headers=ayu.headers)
    shown = (await client.get(f"/conversations/{answer['conversation_id']}", headers=ayu.headers)).json()
    question = shown["messages"][0]["id"]
    edited = await client.put(f"/messages/{question}", json={"content": "Ho"}, headers=ayu.headers)
    assert edited.status_code == 200, edited.text
    assert model.requests[-1].body["model"] == "gpt-4.1"
