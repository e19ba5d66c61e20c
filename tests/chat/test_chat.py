"""`POST /chat` with `stream: false`: what is asked, what is answered, and what it costs."""

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

import httpx
import pytest

from app import clock
from app.db.database import Database
from tests.support import accounts, invariants, openai_server, problems
from tests.support.accounts import SECRET_KEY, Caller
from tests.support.invariants import Totals
from tests.support.openai_server import Answer, OpenAIServer, usage


@pytest.fixture
def upstream() -> Iterator[OpenAIServer]:
    """The model's service."""
    with openai_server.running() as server:
        yield server


@pytest.fixture
def llm_model() -> str:
    """`LLM_MODEL`."""
    return "gpt-4o-mini"


@pytest.fixture
def app_settings(database_url: str, upstream: OpenAIServer, llm_model: str) -> dict[str, Any]:
    """The settings of the application under test."""
    llm = {"llm_base_url": upstream.url, "llm_api_key": "the key of the tests", "llm_model": llm_model}
    return {"database_url": database_url, "secret_key": SECRET_KEY, **llm}


async def chat(client: httpx.AsyncClient, caller: Caller, message: str, **fields: Any) -> dict[str, Any]:
    body = {"message": message, "stream": False, **fields}
    answer = await client.post("/chat", headers=caller.headers, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    content: dict[str, Any] = answer.json()
    assert set(content) == {"conversation_id", "message"}
    return content


def prompts_of(upstream: OpenAIServer) -> list[tuple[str, str]]:
    """What the service was asked last."""
    return [(prompt["role"], prompt["content"]) for prompt in upstream.requests[-1].body["messages"]]


async def test_an_answer_is_told_priced_and_counted_to_the_last_digit(
    client: httpx.AsyncClient, database: Database, ayu: Caller, upstream: OpenAIServer
) -> None:
    upstream.answer = Answer(
        content="Apa kabar? \U0001f984", model="gpt-4o-mini-2024-07-18", usage=usage(1203, 301, 202)
    )
    before = clock.now()
    message = (await chat(client, ayu, "Say something"))["message"]
    cost = Fraction(1001 * 150 + 202 * 75 + 301 * 600, 10**9)  # OpenAI's prices of 0.15, 0.075 and 0.60 a million
    assert cost == Fraction("0.0003459")
    created_at = datetime.fromisoformat(message["created_at"])
    assert message == {
        "id": message["id"],
        "role": "assistant",
        "content": "Apa kabar? \U0001f984",
        "model": "gpt-4o-mini-2024-07-18",
        "input_tokens": 1203,
        "output_tokens": 301,
        "cached_input_tokens": 202,
        "total_tokens": 1504,
        "cost": "0.0003459",
        "finish_reason": "stop",
        "status": "complete",
        "created_at": message["created_at"],
    }
    assert isinstance(message["id"], int)
    assert message["created_at"].endswith("Z")
    assert before <= created_at <= clock.now()
    month = f"{created_at:%Y-%m}"
    figures = {"input_tokens": 1203, "output_tokens": 301, "total_tokens": 1504, "message_count": 1}
    assert (await client.get("/auth/me", headers=ayu.headers)).json() == {
        "id": ayu.id,
        "username": "ayu",
        "email": "ayu@example.com",
        "role": "user",
        "is_active": True,
        "token_stats": {
            "monthly_stats": [{"month": month, "total_cost": 0.0003459, **figures}],
            "total_months": 1,
            "has_more": False,
        },
    }
    assert await invariants.check(database) == {(ayu.id, month): Totals(1203, 301, 1504, cost, 1)}


async def test_a_cost_is_a_plain_decimal(client: httpx.AsyncClient, ayu: Caller, upstream: OpenAIServer) -> None:
    for content, counts, cost in (
        ("", (1, 0, 0), "0.00000015"),
        ("", (1, 0, 1), "0.000000075"),
        ("Yes", (1, 1, 0), "0.00000075"),
        ("Yes", (2_000_000_000, 2_000_000_000, 0), "1500"),
        ("", (0, 0, 0), "0"),
    ):
        upstream.answer = Answer(content=content, usage=usage(*counts))
        message = (await chat(client, ayu, "Hi"))["message"]
        assert message["cost"] == cost
        assert message["total_tokens"] == counts[0] + counts[1]


async def test_the_service_gets_one_request_of_model_message_and_key(
    client: httpx.AsyncClient, ayu: Caller, upstream: OpenAIServer
) -> None:
    await chat(client, ayu, "What is\nthe time?")
    [request] = upstream.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer the key of the tests"
    assert request.body["model"] == "gpt-4o-mini"
    assert prompts_of(upstream) == [("user", "What is\nthe time?")]
    assert not request.body.get("stream")
    await chat(client, ayu, "And now?", model="gpt-4o")
    assert upstream.requests[-1].body["model"] == "gpt-4o"


@pytest.mark.parametrize("llm_model", [""])
async def test_without_any_model_the_field_is_named(
    client: httpx.AsyncClient, ayu: Caller, upstream: OpenAIServer
) -> None:
    answer = await client.post("/chat", headers=ayu.headers, json={"message": "Hi", "stream": False})
    assert list(problems.check(answer, 422)["errors"]) == ["model"]
    assert upstream.requests == []
    assert (await chat(client, ayu, "Hi", model="gpt-4o"))["message"]["model"] == "gpt-4o"


async def test_a_conversation_goes_on_with_what_was_said_before(
    client: httpx.AsyncClient, database: Database, ayu: Caller, upstream: OpenAIServer
) -> None:
    said: list[tuple[str, str]] = []
    conversation: dict[str, str] = {}
    for number in range(3):
        upstream.answer = Answer(content=f"Answer {number}", usage=usage(10 * number + 1, 1))
        answered = await chat(client, ayu, f"Question {number}", **conversation)
        said.append(("user", f"Question {number}"))
        assert prompts_of(upstream) == said
        said.append(("assistant", f"Answer {number}"))
        conversation = conversation or {"conversation_id": answered["conversation_id"]}
        assert answered["conversation_id"] == conversation["conversation_id"]
    stored = (await client.get(f"/conversations/{conversation['conversation_id']}", headers=ayu.headers)).json()
    assert [(message["role"], message["content"]) for message in stored["messages"]] == said
    [totals] = (await invariants.check(database)).values()
    assert totals == Totals(33, 3, 36, Fraction(33 * 150 + 3 * 600, 10**9), 3)


async def test_conversations_do_not_hear_each_other(
    client: httpx.AsyncClient, ayu: Caller, upstream: OpenAIServer
) -> None:
    first = await chat(client, ayu, "One")
    second = await chat(client, ayu, "Two")
    assert first["conversation_id"] != second["conversation_id"]
    await chat(client, ayu, "Three", conversation_id=first["conversation_id"])
    assert [content for role, content in prompts_of(upstream) if role == "user"] == ["One", "Three"]


async def test_foreign_unknown_and_deleted_conversations_are_not_found(
    client: httpx.AsyncClient, database: Database, ayu: Caller, upstream: OpenAIServer
) -> None:
    bela = await accounts.add(database, "bela")
    foreign = (await chat(client, bela, "Mine"))["conversation_id"]
    deleted = (await chat(client, ayu, "Gone"))["conversation_id"]
    assert (await client.delete(f"/conversations/{deleted}", headers=ayu.headers)).status_code == 204
    before, asked = await invariants.check(database), len(upstream.requests)
    details = set()
    for conversation_id in (foreign, deleted, "unknown", "' OR 1=1", "x" * 255):
        body = {"message": "Hi", "stream": False, "conversation_id": conversation_id}
        answer = await client.post("/chat", headers=ayu.headers, json=body)
        details.add(problems.check(answer, 404)["detail"])
    assert len(details) == 1
    assert len(upstream.requests) == asked
    assert await invariants.check(database) == before


async def test_a_model_without_a_known_price_costs_null(
    client: httpx.AsyncClient, database: Database, ayu: Caller, upstream: OpenAIServer
) -> None:
    upstream.answer = Answer(model="a model of our own", usage=usage(7, 3))
    message = (await chat(client, ayu, "Hi"))["message"]
    assert (message["cost"], message["total_tokens"]) == (None, 10)
    [month] = (await client.get("/auth/me", headers=ayu.headers)).json()["token_stats"]["monthly_stats"]
    assert (month["total_cost"], month["total_tokens"], month["message_count"]) == (0, 10, 1)
    await invariants.check(database)


async def test_answers_at_once_are_all_counted(
    client: httpx.AsyncClient, database: Database, ayu: Caller, upstream: OpenAIServer
) -> None:
    upstream.answer = lambda request: Answer(usage=usage(int(request["messages"][-1]["content"]), 1))
    answers = await asyncio.gather(*(chat(client, ayu, str(2**i)) for i in range(12)))
    assert [answer["message"]["input_tokens"] for answer in answers] == [2**i for i in range(12)]
    assert len({answer["conversation_id"] for answer in answers}) == 12
    months = await invariants.check(database)
    assert sum(totals.input_tokens for totals in months.values()) == 2**12 - 1
    assert sum(totals.message_count for totals in months.values()) == 12


async def test_what_was_asked_belongs_to_the_time_when_it_was_asked(
    client: httpx.AsyncClient, ayu: Caller, upstream: OpenAIServer
) -> None:
    upstream.answer = Answer(stall_after=0)
    asking = asyncio.ensure_future(chat(client, ayu, "Hi"))
    await asyncio.to_thread(upstream.wait_until, lambda: len(upstream.requests) == 1)
    asked = clock.now()
    upstream.release()
    created_at = datetime.fromisoformat((await asking)["message"]["created_at"])
    assert asked - timedelta(minutes=1) < created_at <= asked
