"""Preferences: stored by their user, sent to the model, counted as input."""

import asyncio
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import insert

from app.db.database import Database
from models import Preferences
from services.accounts import users
from services.accounts.preferences import MAX_LENGTH, Sent
from tests.support import backfilling, invariants, openai_server, problems
from tests.support.accounts import Caller
from tests.support.openai_server import Answer, OpenAIServer

STORED = {"nickname": "Ayu", "job": "nurse", "chatbot_preference": "Short answers."}
PROMPT = "The user likes to be called Ayu.\nThe user's job: nurse\nThe user's wishes for your answers: Short answers."


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The application asks the tests' model."""
    return openai_server.settings(database_url, model)


async def put(client: httpx.AsyncClient, caller: Caller, body: Any) -> dict[str, Any]:
    answer = await client.put("/preferences", json=body, headers=caller.headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def chat(client: httpx.AsyncClient, caller: Caller, key: str | None = None, **body: Any) -> httpx.Response:
    headers = caller.headers | ({"Idempotency-Key": key} if key else {})
    return await client.post("/chat", json={"message": "Hi", "stream": False} | body, headers=headers)


def system(model: OpenAIServer) -> list[str]:
    messages = model.requests[-1].body["messages"]
    return [message["content"] for message in messages if message["role"] == "system"]


async def test_preferences_are_stored_and_changed_in_part(client: httpx.AsyncClient, ayu: Caller, bela: Caller) -> None:
    unset = await client.get("/preferences", headers=ayu.headers)
    nothing = dict.fromkeys(("id", "nickname", "job", "chatbot_preference", "created_at", "updated_at"))
    assert unset.json() == nothing | {"user_id": ayu.id}
    first = await put(client, ayu, STORED)
    assert {name: first[name] for name in STORED} == STORED
    second = await put(client, ayu, {"job": None})
    assert second == first | {"job": None, "updated_at": second["updated_at"]}
    assert (await client.get("/preferences/", headers=ayu.headers)).json() == second
    assert (await client.get("/preferences", headers=bela.headers)).json() == nothing | {"user_id": bela.id}


@pytest.mark.any_database
@pytest.mark.parametrize(
    "body",
    [{"nickname": "x" * 256}, {"job": 7}, {"chatbot_preference": "x" * (MAX_LENGTH + 1)}, {"job": "\x00"}, []],
)
async def test_what_cannot_be_stored_is_refused(client: httpx.AsyncClient, ayu: Caller, body: Any) -> None:
    await put(client, ayu, STORED)
    problems.check(await client.put("/preferences", json=body, headers=ayu.headers), 422)
    stored = (await client.get("/preferences", headers=ayu.headers)).json()
    assert {name: stored[name] for name in STORED} == STORED


async def test_the_model_receives_them_in_each_turn(
    client: httpx.AsyncClient, ayu: Caller, model: OpenAIServer
) -> None:
    first = (await chat(client, ayu)).json()
    assert system(model) == []
    await put(client, ayu, STORED)
    await chat(client, ayu, conversation_id=first["conversation_id"])
    assert system(model) == [PROMPT]
    await chat(client, ayu, system="Speak Javanese.")
    assert system(model) == [f"{PROMPT}\n\nSpeak Javanese."]


async def test_an_estimate_counts_them_as_input(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    model.answer = Answer(usage=None)
    before = (await chat(client, ayu)).json()["message"]["input_tokens"]
    await put(client, ayu, STORED)
    after = (await chat(client, ayu)).json()["message"]["input_tokens"]
    assert after >= before + len(PROMPT.split())
    await invariants.check(database)


async def test_a_repeated_request_survives_their_change(
    client: httpx.AsyncClient, ayu: Caller, model: OpenAIServer
) -> None:
    first = await chat(client, ayu, key="one")
    await put(client, ayu, STORED)
    assert (await chat(client, ayu, key="one")).json() == first.json()
    assert len(model.requests) == 1


async def test_old_rows_of_any_form_are_sent(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    values = {"id": 2, "user_id": ayu.id, "nickname": " ", "chatbot_preference": "x" * (MAX_LENGTH + 5)}
    async with database.sessions.begin() as session:
        await session.execute(insert(Preferences).values(values))
    await chat(client, ayu)
    assert system(model) == [f"The user's wishes for your answers: {'x' * MAX_LENGTH}"]
    assert (await put(client, ayu, {"job": "nurse"}))["id"] == 2


@example(Sent("\x00", "a\x00b", " "))
@given(st.tuples(*[st.none() | st.text(max_size=20)] * 3).map(Sent._make))
def test_only_what_says_something_is_sent(sent: Sent) -> None:
    stored = [(text or "").replace("\x00", "\ufffd").strip() for text in sent]
    said = [text for text in stored if text]
    prompt = sent.prompt
    assert (prompt is None) == (not said)
    assert all(text in (prompt or "") for text in said)
    assert "\x00" not in (prompt or "")


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_user_being_deleted_stores_none(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    async with database.sessions.begin() as session:
        await users.delete(session, ayu.id)
        other = asyncio.create_task(client.put("/preferences", json=STORED, headers=ayu.headers))

        async def has_come() -> bool:
            return other.done() or bool(await backfilling.waiting(database))

        await backfilling.until(has_come)
    problems.check(await other, 401)
