"""`POST /chat/{message_id}/stop`, and hang-ups that stop the model: what came is stored as interrupted, and counted."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from app.db.database import Database
from services.chat.runner import Limits
from tests.support import accounts, problems
from tests.support.accounts import SECRET_KEY
from tests.support.live_chat import (
    ASKED,
    HEARD,
    MODEL,
    PIECES,
    Live,
    check,
    hear,
    keyed,
    limited,
    live,
    model,
    newcomer,
    other_worker,
    request,
    stopped,
    until,
)
from tests.support.openai_server import Answer, OpenAIServer, usage

__all__ = ["live", "model", "other_worker"]
pytestmark = pytest.mark.any_database


@pytest.fixture
def stop_on_hangup() -> bool:
    """`STOP_ON_HANGUP`."""
    return False


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer, stop_on_hangup: bool) -> dict[str, Any]:
    """The application asks the tests' model."""
    llm = {"llm_base_url": model.url, "llm_model": MODEL, "stop_on_hangup": stop_on_hangup}
    return {"database_url": database_url, "secret_key": SECRET_KEY, **llm}


@pytest.mark.parametrize("pieces", [0, 2])
async def test_a_stopped_answer_is_interrupted_and_counted(live: Live, pieces: int) -> None:
    live.model.answer = Answer(chunks=PIECES, stall_after=pieces)
    message = await stopped(live, live.client, pieces)
    assert message["content"] == "".join(PIECES[:pieces])
    await check(live, "interrupted", (ASKED, HEARD[pieces], 0), estimated=True)
    await until(lambda: not live.app.state.foundation.runner.running)


async def test_what_was_reported_before_the_stop_counts(live: Live) -> None:
    live.model.answer = Answer(chunks=PIECES, stall_after=2, usage=usage(190, 50), cumulative_usage=True)
    await stopped(live, live.client, 2)
    await check(live, "interrupted", (190, 20, 0))


async def test_another_process_can_stop_an_answer(
    live: Live, other_worker: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.model.answer = Answer(chunks=PIECES, stall_after=1)
    looking = asyncio.create_task(_look(live))
    await stopped(live, other_worker, 1)
    looking.cancel()
    await check(live, "interrupted", (ASKED, HEARD[1], 0), estimated=True)


async def _look(live: Live) -> None:
    while True:  # sooner than at the next heartbeat
        await live.app.state.foundation.runner.stop_marked()
        await asyncio.sleep(0.05)


async def test_only_ones_own_running_answers_can_be_stopped(
    client: httpx.AsyncClient, database: Database, live: Live
) -> None:
    body = {"message": "Hi", "stream": False}
    message = (await client.post("/chat", headers=live.caller.headers, json=body)).json()["message"]
    bela = await accounts.add(database, "bela")
    problems.check(await client.post(f"/chat/{message['id']}/stop", headers=bela.headers), 404)
    problems.check(await client.post(f"/chat/{message['id'] - 1}/stop", headers=live.caller.headers), 404)
    problems.check(await client.post("/chat/0/stop", headers=live.caller.headers), 422)
    assert (await client.post(f"/chat/{message['id']}/stop", headers=live.caller.headers)).status_code == 204
    await check(live, "complete", (10, 5, 0))


async def test_a_stopped_answer_is_the_answer_of_its_key(live: Live) -> None:
    live.model.answer = Answer(chunks=PIECES, stall_after=1)
    message = await stopped(live, live.client, 1)
    again = await live.client.post(**keyed(live, stream=False))
    assert again.json()["message"] == message


@pytest.mark.parametrize("stop_on_hangup", [True])
async def test_a_hang_up_may_stop_the_model_at_once(live: Live, stop_on_hangup: bool) -> None:
    live.model.answer = Answer(chunks=PIECES, stall_after=2)
    await hear(live, 2)
    await check(live, "interrupted", (ASKED, HEARD[2], 0), estimated=True)
    await asyncio.to_thread(live.model.wait_until, lambda: live.model.requests[0].is_left)


@pytest.mark.parametrize("stop_on_hangup", [True])
async def test_a_hang_up_without_a_stream_may_stop_the_model_too(live: Live, stop_on_hangup: bool) -> None:
    live.model.answer = Answer(content="".join(PIECES), stall_after=0)
    asking = asyncio.create_task(live.client.post(**request(live, stream=False)))
    await until(lambda: bool(live.model.requests))
    asking.cancel()
    await asyncio.to_thread(live.model.wait_until, lambda: live.model.requests[0].is_left)
    await check(live, "interrupted", (ASKED, 0, 0), estimated=True)


OPTIONS = {"temperature": 0.5, "max_tokens": 77, "reasoning_effort": "low"}


async def test_parameters_are_passed_on(live: Live) -> None:
    for stream in (True, False):
        other = await newcomer(live)
        answer = await other.client.post(**request(other, stream=stream, system="Be kind.", **OPTIONS))
        assert answer.status_code == 200, answer.text
        sent = live.model.requests[-1].body
        assert {name: sent[name] for name in OPTIONS} == OPTIONS
        assert sent["messages"] == [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
        ]


async def test_a_model_may_know_the_limit_by_its_new_name(live: Live) -> None:
    refusal = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )
    live.model.answer = lambda sent: (
        Answer(status=400, error=refusal) if "max_tokens" in sent else Answer(chunks=PIECES)
    )
    for requests in (2, 1):
        live.model.requests.clear()
        answer = await live.client.post(**request(live, stream=False, max_tokens=77))
        assert answer.status_code == 200, answer.text
        assert len(live.model.requests) == requests
        assert live.model.requests[-1].body["max_completion_tokens"] == 77


async def test_the_systems_text_counts_as_input(live: Live) -> None:
    live.model.answer = Answer(chunks=PIECES, usage=None)
    await live.client.post(**request(live, system="Be kind."))
    await check(live, "complete", (ASKED + 7, HEARD[5], 0), estimated=True)


async def test_parameters_are_part_of_the_idempotency_key(live: Live) -> None:
    first = await live.client.post(**keyed(live, stream=False, **OPTIONS))
    assert (await live.client.post(**keyed(live, stream=False, **OPTIONS))).json() == first.json()
    changed: list[dict[str, Any]] = [{}, OPTIONS | {"temperature": 1}, OPTIONS | {"system": "Be kind."}]
    for options in changed:
        problems.check(await live.client.post(**keyed(live, stream=False, **options)), 422)


async def test_what_is_not_known_or_out_of_range_is_refused(live: Live) -> None:
    wrong: dict[str, list[Any]] = {
        "temprature": [1],
        "messages": [[]],
        "temperature": [-0.1, 2.1, "warm", True],
        "max_tokens": [0, -1, 2**31, 1.5, "5"],
        "system": ["", "a\x00b", 5],
        "reasoning_effort": ["huge", 1],
    }
    for name, values in wrong.items():
        for value in values:
            content = json.dumps({"message": "Hi", name: value})
            headers = live.caller.headers | {"Content-Type": "application/json"}
            answer = await live.client.post("/chat", headers=headers, content=content)
            assert list(problems.check(answer, 422)["errors"]) == [name], value
    assert live.model.requests == []


async def test_a_short_time_limit_is_not_a_stop(live: Live) -> None:
    live.model.answer = Answer(chunks=PIECES, stall_after=2)
    async with limited(live, limits=Limits(drain=0.1)):
        await hear(live, 2)
        await check(live, "interrupted", (ASKED, HEARD[2], 0), estimated=True)
