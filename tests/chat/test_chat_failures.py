"""`POST /chat` with `stream: false`, where the model's service fails or none is there; and what cannot be asked."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.db.database import Database
from tests.support import invariants, openai_server, problems
from tests.support.accounts import SECRET_KEY, Caller
from tests.support.openai_server import Answer, OpenAIServer, usage

pytestmark = pytest.mark.any_database

SECRET = "sk-a-secret-of-the-service"


@pytest.fixture
def upstream() -> Iterator[OpenAIServer]:
    """The model's service."""
    with openai_server.running() as server:
        yield server


@pytest.fixture
def nobody_listens() -> Iterator[str]:
    """The address of a port on which nobody listens, and which nobody else can take meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


@pytest.fixture
def base_url(upstream: OpenAIServer, nobody_listens: str, request: pytest.FixtureRequest) -> str:
    """`LLM_BASE_URL`: the tests' own service, unless a test asks for another."""
    wanted = str(getattr(request, "param", upstream.url))
    return nobody_listens if wanted == "nobody listens" else wanted


@pytest.fixture
def app_settings(database_url: str, base_url: str) -> dict[str, Any]:
    """The settings of the application under test."""
    llm = {"llm_base_url": base_url, "llm_api_key": SECRET, "llm_model": "gpt-4o-mini"}
    return {"database_url": database_url, "secret_key": SECRET_KEY, **llm}


async def ask(client: httpx.AsyncClient, caller: Caller, **fields: Any) -> httpx.Response:
    content = json.dumps({"message": "Hi", "stream": False, **fields}).encode()
    headers = caller.headers | {"Content-Type": "application/json"}
    return await client.post("/chat", headers=headers, content=content)


async def answers_in(client: httpx.AsyncClient, caller: Caller) -> list[dict[str, Any]]:
    """All messages of the model in the caller's conversations."""
    found = []
    for conversation in (await client.get("/conversations", headers=caller.headers)).json()["conversations"]:
        stored = (await client.get(f"/conversations/{conversation['id']}", headers=caller.headers)).json()
        found += [message for message in stored["messages"] if message["role"] == "assistant"]
    return found


async def is_nothing_counted(client: httpx.AsyncClient, database: Database, caller: Caller) -> bool:
    me = (await client.get("/auth/me", headers=caller.headers)).json()
    return await invariants.check(database) == {} and me["token_stats"]["total_months"] == 0


async def test_an_error_of_the_service_is_a_bad_gateway_and_counts_nothing(
    client: httpx.AsyncClient, database: Database, ayu: Caller, upstream: OpenAIServer
) -> None:
    for status in (400, 401, 403, 404, 422, 429, 500):
        upstream.answer = Answer(status=status, error=f"{SECRET} is not valid, says /srv/model.py")
        problem = problems.check(await ask(client, ayu), 502)
        assert SECRET not in problem["detail"]
        assert "model.py" not in problem["detail"]
    stored = await answers_in(client, ayu)
    assert [message["status"] for message in stored] == ["failed"] * 7
    for message in stored:
        assert [message[name] for name in ("input_tokens", "output_tokens", "total_tokens", "cost")] == [None] * 4
    assert await is_nothing_counted(client, database, ayu)


@pytest.mark.parametrize("base_url", ["nobody listens"], indirect=True)
async def test_an_absent_service_is_a_bad_gateway_and_counts_nothing(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    problems.check(await ask(client, ayu), 502)
    [message] = await answers_in(client, ayu)
    assert (message["status"], message["total_tokens"]) == ("failed", None)
    assert await is_nothing_counted(client, database, ayu)


def says(content: Any) -> Answer:
    """An answer whose content is something else than a text."""
    return Answer(garbage=json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}))


UNREADABLE = {
    "HTML": Answer(garbage="<html>Bad gateway</html>"),
    "cut short": Answer(garbage="{"),
    "null": Answer(garbage="null"),
    "a list": Answer(garbage="[]"),
    "an object": Answer(garbage="{}"),
    "no choice": Answer(garbage='{"choices": []}'),
    "no message": Answer(garbage='{"choices": [{"message": null}]}'),
    "a list said": says(["a"]),
    "a number said": says(7),
    "nothing": Answer(garbage=""),
    "broken off": Answer(die_after=0),
}


async def test_an_answer_that_cannot_be_read_is_a_bad_gateway_and_settled(
    client: httpx.AsyncClient, database: Database, ayu: Caller, upstream: OpenAIServer
) -> None:
    for name, unreadable in UNREADABLE.items():
        upstream.answer = unreadable
        answer = await ask(client, ayu)
        assert answer.status_code == 502, f"{name}: {answer.text}"
        problems.check(answer, 502)
    assert {message["status"] for message in await answers_in(client, ayu)} <= {"failed", "interrupted"}
    assert len(upstream.requests) == len(UNREADABLE), "what may have been billed is not asked again"
    await invariants.check(database)


@pytest.mark.parametrize("odd", ["a\x00b", "a\ud800b"], ids=["NUL", "half a surrogate pair"])
async def test_text_that_no_database_can_store_is_counted_nevertheless(
    client: httpx.AsyncClient, database: Database, ayu: Caller, upstream: OpenAIServer, odd: str
) -> None:
    for answer in (Answer(content=odd, usage=usage(10, 5)), Answer(model=odd, usage=usage(10, 5))):
        upstream.answer = answer
        answered = await ask(client, ayu)
        assert answered.status_code == 200, answered.text
        assert answered.json()["message"]["total_tokens"] == 15
    [totals] = (await invariants.check(database)).values()
    assert totals.message_count == 2


async def test_after_a_failure_the_conversation_goes_on(
    client: httpx.AsyncClient, database: Database, ayu: Caller, upstream: OpenAIServer
) -> None:
    conversation_id = (await ask(client, ayu, message="One")).json()["conversation_id"]
    upstream.answer = Answer(status=400)
    problems.check(await ask(client, ayu, message="Two", conversation_id=conversation_id), 502)
    upstream.answer = Answer(content="Good again")
    answer = await ask(client, ayu, message="Three", conversation_id=conversation_id)
    assert answer.json()["message"]["content"] == "Good again"
    assert upstream.requests[-1].body["messages"][-1] == {"role": "user", "content": "Three"}
    assert [message["status"] for message in await answers_in(client, ayu)] == ["complete", "failed", "complete"]
    [totals] = (await invariants.check(database)).values()
    assert totals.message_count == 2


IMPOSSIBLE_USAGE: list[dict[str, Any] | None] = [
    None,
    usage(-1, 5),
    usage(10, -5),
    usage(10, 5, 11),
    usage(2**31, 5),
    usage(10, 2**63),
    {"prompt_tokens": "many", "completion_tokens": 5, "total_tokens": 5},
    {"prompt_tokens": 1.5, "completion_tokens": 5, "total_tokens": 5},
    {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None},
    {},
]


async def test_usage_that_is_not_told_or_cannot_be_is_estimated_and_marked(
    client: httpx.AsyncClient, database: Database, ayu: Caller, upstream: OpenAIServer
) -> None:
    total = 0
    for told in IMPOSSIBLE_USAGE:
        upstream.answer = Answer(content="Hello there, how are you?", usage=told)
        message = (await ask(client, ayu, message="Hi, it is me")).json()["message"]
        assert message["status"] == "complete"
        assert 1 <= message["input_tokens"] <= 30, told
        assert 1 <= message["output_tokens"] <= 25, told
        total += message["total_tokens"]
    async with database.reads() as session:
        marks = (await session.execute(text("SELECT usage_estimated FROM messages WHERE role = 'assistant'"))).scalars()
        assert list(marks) == [True] * len(IMPOSSIBLE_USAGE)
    [totals] = (await invariants.check(database)).values()
    assert (totals.total_tokens, totals.message_count) == (total, len(IMPOSSIBLE_USAGE))


@pytest.mark.parametrize("base_url", [""], indirect=True)
async def test_without_a_service_the_offline_model_answers_and_counts(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    for fields in ({}, {"model": "gpt-4o"}):
        message = (await ask(client, ayu, message="Do you hear me?", **fields)).json()["message"]
        assert "Do you hear me?" in message["content"]
        assert (message["model"], message["cost"], message["status"]) == ("offline", None, "complete")
        assert message["input_tokens"] > 0
        assert message["output_tokens"] > 0
    [month] = (await client.get("/auth/me", headers=ayu.headers)).json()["token_stats"]["monthly_stats"]
    assert (month["message_count"], month["total_cost"]) == (2, 0)
    await invariants.check(database)


async def test_what_cannot_be_asked_is_refused_with_its_field(
    client: httpx.AsyncClient, database: Database, ayu: Caller, upstream: OpenAIServer
) -> None:
    texts: tuple[Any, ...] = ("", "a\x00b", "\ud800", 7, None, [], True)
    bad = [(field, value) for field in ("message", "model", "conversation_id") for value in texts]
    bad = [(field, value) for field, value in bad if value is not None or field == "message"]
    bad += [("message", "x" * 100_001), ("model", "x" * 256), ("conversation_id", "x" * 256), ("stream", "perhaps")]
    for field, value in bad:
        errors = problems.check(await ask(client, ayu, **{field: value}), 422)["errors"]
        assert list(errors) == [field], f"{field}={value!r}: {errors}"
    headers = ayu.headers | {"Content-Type": "application/json"}
    for body in (b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000):
        problems.check(await client.post("/chat", headers=headers, content=body), 422)
    assert upstream.requests == []
    async with database.reads() as session:
        assert (await session.execute(text("SELECT count(*) FROM messages"))).scalar_one() == 0


async def test_only_active_users_with_a_token_may_ask(
    client: httpx.AsyncClient, database: Database, ayu: Caller, upstream: OpenAIServer
) -> None:
    problems.check(await client.post("/chat", json={"message": "Hi", "stream": False}), 401)
    async with database.sessions.begin() as session:
        await session.execute(text("UPDATE users SET is_active = false"))
    problems.check(await ask(client, ayu), 401)
    problems.check(await ask(client, Caller(ayu.id + 1, "nobody")), 401)
    assert upstream.requests == []


async def test_the_longest_message_is_taken(client: httpx.AsyncClient, ayu: Caller, upstream: OpenAIServer) -> None:
    long = "\U0001f984" * 100_000
    assert (await ask(client, ayu, message=long)).status_code == 200
    assert upstream.requests[0].body["messages"][0]["content"] == long
