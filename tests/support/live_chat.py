"""A chat over a real server: callers who ask, listen and hang up, and what must be stored and counted of it."""

import asyncio
import contextlib
import json
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import Row, text

from app.db.database import Database
from app.settings import Settings
from main import create_app
from services.chat import openai_upstream
from services.chat.openai_upstream import Timeouts
from services.chat.runner import Limits, TurnRunner
from tests.support import accounts, invariants, openai_server, problems
from tests.support.accounts import Caller
from tests.support.invariants import Totals
from tests.support.openai_server import Answer, OpenAIServer

DEADLINE_SECONDS = 60
MODEL = "gpt-4o"
DOLLARS = {"gpt-4o": (2.5, 1.25, 10), "gpt-4o-mini": (0.15, 0.075, 0.6)}  # a million fresh, cached and output tokens
QUESTION = "Hi"
ASKED = 8  # tokens of the question in its frame, by o200k_base
PIECES = ("Hello", " there,", " how", " are", " you?")
HEARD = (0, 1, 3, 4, 5, 7)  # tokens of 0, 1, … pieces
ANSWER = text("SELECT * FROM messages WHERE role = 'assistant' AND user_id = :user")
Event = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Live:
    """The application behind a real server, and a caller with a model of the tests' own."""

    app: FastAPI
    server: uvicorn.Server
    client: httpx.AsyncClient
    database: Database
    caller: Caller
    model: OpenAIServer


@pytest.fixture
def model(model: OpenAIServer) -> OpenAIServer:
    """The model's service."""
    model.answer = Answer(chunks=PIECES)
    return model


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The application asks the tests' model."""
    return openai_server.settings(database_url, model, MODEL)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are pytest's


@pytest.fixture
async def live(app: FastAPI, database: Database, model: OpenAIServer) -> AsyncIterator[Live]:
    """A server on a free port, in this loop."""
    server = _Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE_SECONDS) as client:
            yield Live(app, server, client, database, await accounts.add(database, "ayu"), model)
        server.should_exit = True
        await serving


@pytest.fixture
async def other_worker(app_settings: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    """Another process with the same database."""
    other: FastAPI = create_app(Settings.load(**app_settings))
    async with other.router.lifespan_context(other):
        transport = httpx.ASGITransport(app=other, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


async def newcomer(live: Live) -> Live:
    """The same with another caller, who has not asked anything."""
    live.model.requests.clear()
    return replace(live, caller=await accounts.add(live.database, uuid.uuid4().hex))


@contextlib.asynccontextmanager
async def limited(
    live: Live, timeouts: Timeouts | None = None, limits: Limits | None = None, url: str = ""
) -> AsyncIterator[None]:
    """With other timeouts, or with the model elsewhere."""
    state = live.app.state.foundation
    before = state.upstream, state.runner
    state.upstream = openai_upstream.connect(url or live.model.url, "", MODEL, timeouts)
    state.runner = TurnRunner(
        state.database, state.upstream, state.prices, state.settings.usage_timezone, limits or Limits(shutdown=0)
    )
    try:
        yield
    finally:
        await state.runner.close()
        await state.upstream.close()
        state.upstream, state.runner = before


def request(live: Live, **more: Any) -> dict[str, Any]:
    return {"url": "/chat", "headers": live.caller.headers, "json": {"message": QUESTION, **more}}


async def ask(live: Live, **more: Any) -> tuple[list[str], Event]:
    """Asks with a stream; returns the pieces and the last event."""
    async with live.client.stream("POST", **request(live, **more)) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        (first, ids), *deltas, last = [event async for event in events(answer)]
    assert first == "start"
    assert ids.keys() == {"conversation_id", "user_message_id", "message_id", "content", "done"}
    assert all(name == "delta" and data.keys() == {"content", "conversation_id", "done"} for name, data in deltas), (
        deltas
    )
    assert {data["conversation_id"] for _, data in (*deltas, last)} == {ids["conversation_id"]}
    assert (last[1]["answer"] if last[0] == "error" else last[1]["message"])["id"] == ids["message_id"]
    return [data["content"] for _, data in deltas], last


async def asked_in_both_ways(live: Live) -> AsyncIterator[Live]:
    """Two new callers, of whom one has asked with a stream and one without, and both were answered."""
    for stream in (True, False):
        other = await newcomer(live)
        answer = await other.client.post(**request(other, stream=stream))
        assert answer.status_code == 200, answer.text
        assert not stream or "event: done" in answer.text, answer.text
        yield other


async def events(answer: httpx.Response) -> AsyncIterator[Event]:
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        else:
            yield fields["event"], json.loads(fields["data"])


async def hear(live: Live, pieces: int) -> None:
    """Ask, and hang up after a number of pieces."""
    async with live.client.stream("POST", **request(live)) as answer:
        heard = events(answer)
        if pieces:
            assert (await anext(heard))[0] == "start"
        for _ in range(pieces):
            assert (await anext(heard))[0] == "delta"
    await until(lambda: not live.server.server_state.tasks)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        await asyncio.sleep(0.01)


ONCE = {"Idempotency-Key": "once"}


def keyed(live: Live, **more: Any) -> dict[str, Any]:
    """A request under an idempotency key."""
    return request(live, **more) | {"headers": live.caller.headers | ONCE}


async def stopped(live: Live, client: httpx.AsyncClient, pieces: int) -> dict[str, Any]:
    """Ask, stop after a number of pieces, and return the data of `done`."""
    async with live.client.stream("POST", **keyed(live)) as answer:
        heard = events(answer)
        name, ids = await anext(heard)
        assert name == "start"
        for _ in range(pieces):
            assert (await anext(heard))[0] == "delta"
        path = f"/chat/{ids['message_id']}/stop"
        stranger = await newcomer(live)
        problems.check(await client.post(path, headers=stranger.caller.headers), 404)
        assert (await client.post(path, headers=live.caller.headers)).status_code == 202
        name, data = await anext(heard)
        assert name == "done"
        assert [item async for item in heard] == []
    assert (await client.post(path, headers=live.caller.headers)).status_code == 204
    message: dict[str, Any] = data["message"]
    assert (message["status"], message["finish_reason"]) == ("interrupted", "stopped")
    return message


async def settled(live: Live) -> Row[*tuple[Any, ...]]:
    """The caller's only answer, once it is settled."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        async with live.database.reads() as session:
            row = (await session.execute(ANSWER, {"user": live.caller.id})).one()
        if row.status != "pending":
            return row
        assert time.monotonic() < deadline, "the turn was not settled"
        await asyncio.sleep(0.01)


async def check(
    live: Live, status: str, tokens: tuple[int, int, int] | None, *, estimated: bool = False, model: str = MODEL
) -> str:
    """Demands that the answer was settled so, and counted so and once; returns its content."""
    row = await settled(live)
    months = [sums for (user, _), sums in (await invariants.check(live.database)).items() if user == live.caller.id]
    assert (row.status, row.model) == (status, model)
    if tokens is None:
        assert (row.input_tokens, row.output_tokens, row.cached_input_tokens, row.cost) == (None,) * 4
        assert months == []
        return str(row.content)
    assert (row.input_tokens, row.output_tokens, row.cached_input_tokens) == tokens
    assert bool(row.usage_estimated) is estimated
    fresh, cached, output = (Decimal(str(dollars)) / 1_000_000 for dollars in DOLLARS[model])
    cost = fresh * (tokens[0] - tokens[2]) + cached * tokens[2] + output * tokens[1]
    assert months == [Totals(tokens[0], tokens[1], sum(tokens[:2]), Fraction(cost), 1)]
    return str(row.content)


def is_problem(event: Event, status: int) -> bool:
    name, data = event
    assert data.keys() == problems.MEMBERS | {"conversation_id", "answer", "content", "done"}
    return name == "error" and data["status"] == status and not any(leak in str(data) for leak in problems.LEAKS)
