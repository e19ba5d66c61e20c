"""Stops that race: with the first byte, the last one, a retry, another stop, another process, an idempotency key."""

import asyncio
from typing import Any

import httpx
import pytest

from services.chat.runner import TurnRunner
from services.chat.tokenizer import Prompt
from tests.support import invariants, openai_server, problems
from tests.support.live_chat import (
    ASKED,
    DEADLINE_SECONDS,
    HEARD,
    MODEL,
    PIECES,
    Live,
    check,
    events,
    keyed,
    live,
    model,
    newcomer,
    other_worker,
    request,
    settled,
    stopped,
)
from tests.support.openai_server import Answer, OpenAIServer

__all__ = ["live", "model", "other_worker"]


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The application asks the tests' model."""
    return openai_server.settings(database_url, model, MODEL)


async def test_a_stop_before_the_model_is_asked_counts_nothing(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    async def fitting(*_arguments: Any) -> list[Prompt]:
        asked.set()
        await asyncio.sleep(DEADLINE_SECONDS)
        return []

    monkeypatch.setattr(TurnRunner, "fitting", fitting)
    message = await stopped(live, live.client, 0)
    assert asked.is_set()
    assert (message["content"], message["input_tokens"], message["cost"]) == ("", None, None)
    assert live.model.requests == []
    await check(live, "interrupted", None)


async def test_a_stop_while_a_busy_model_is_awaited_counts_nothing(live: Live) -> None:
    live.model.answer = Answer(status=429, headers={"Retry-After": "9"})
    async with live.client.stream("POST", **request(live)) as answer:
        heard = events(answer)
        _, ids = await anext(heard)
        await asyncio.to_thread(live.model.wait_until, lambda: bool(live.model.requests))
        await asyncio.sleep(0.2)  # until its refusal is read
        assert (await live.client.post(f"/chat/{ids['message_id']}/stop", headers=live.caller.headers)).is_success
        name, data = await anext(heard)
    assert (name, data["message"]["finish_reason"], data["message"]["input_tokens"]) == ("done", "stopped", None)
    await check(live, "interrupted", None)


async def test_many_stops_at_once_stop_once(live: Live, other_worker: httpx.AsyncClient) -> None:
    live.model.answer = Answer(chunks=PIECES, stall_after=2)
    async with live.client.stream("POST", **request(live)) as answer:
        heard = events(answer)
        _, ids = await anext(heard)
        assert [(await anext(heard))[0] for _ in range(2)] == ["delta", "delta"]
        path = f"/chat/{ids['message_id']}/stop"
        stops = [client.post(path, headers=live.caller.headers) for client in (live.client, other_worker) * 3]
        assert {stop.status_code for stop in await asyncio.gather(*stops)} <= {202, 204}
        rest = [item async for item in heard]
    [(name, data)] = rest
    assert (name, data["message"]["content"]) == ("done", "".join(PIECES[:2]))
    await check(live, "interrupted", (ASKED, HEARD[2], 0), estimated=True)


async def test_a_stop_during_the_end_agrees_with_what_is_stored(live: Live) -> None:
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02):
        other = await newcomer(live)
        live.model.answer = Answer(chunks=PIECES, chunk_delay=0.002)
        async with live.client.stream("POST", **request(other)) as answer:
            heard = events(answer)
            _, ids = await anext(heard)
            await asyncio.sleep(delay)
            stop = await live.client.post(f"/chat/{ids['message_id']}/stop", headers=other.caller.headers)
            *deltas, (name, data) = [item async for item in heard]
        assert stop.status_code in (202, 204)
        message = data["message"]
        assert (name, message["status"]) in (("done", "complete"), ("done", "interrupted"))
        assert (message["finish_reason"] == "stopped") is (message["status"] == "interrupted")
        assert message["content"] == "".join(delta["content"] for _, delta in deltas)
        row = await settled(other)
        assert (row.status, row.content, row.finish_reason) == tuple(
            message[name] for name in ("status", "content", "finish_reason")
        )
    await invariants.check(live.database)


async def test_a_key_is_busy_until_its_stop_is_stored(live: Live) -> None:
    live.model.answer = Answer(chunks=PIECES, stall_after=1)
    async with live.client.stream("POST", **keyed(live)) as answer:
        heard = events(answer)
        _, ids = await anext(heard)
        assert (await anext(heard))[0] == "delta"
        problems.check(await live.client.post(**keyed(live, stream=False)), 409)
        await live.client.post(f"/chat/{ids['message_id']}/stop", headers=live.caller.headers)
        name, data = await anext(heard)
    assert name == "done"
    assert (await live.client.post(**keyed(live, stream=False))).json() | {"content": "", "done": True} == data
    async with live.client.stream("POST", **keyed(live)) as again:
        assert [item async for item in events(again)][-1] == ("done", data)
    assert len(live.model.requests) == 1


async def test_another_process_finds_the_stop(live: Live, other_worker: httpx.AsyncClient) -> None:
    live.model.answer = Answer(chunks=PIECES, stall_after=1)
    await stopped(live, other_worker, 1)
    await check(live, "interrupted", (ASKED, HEARD[1], 0), estimated=True)
