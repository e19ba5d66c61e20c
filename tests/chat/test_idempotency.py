"""`Idempotency-Key` on `POST /chat`: the same request sent again is the same message, answered and counted once."""

import asyncio
import json
from fractions import Fraction
from typing import Any

import httpx
import pytest

from app.db.database import Database
from tests.support import invariants, openai_server, problems, records
from tests.support.accounts import Caller
from tests.support.invariants import Totals
from tests.support.openai_server import Answer, OpenAIServer, usage

KEY = "a key of the caller's"
ONCE = Totals(10, 5, 15, Fraction(0), 1)
TWICE = Totals(20, 10, 30, Fraction(0), 2)


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The application asks the tests' model, which has no price."""
    return openai_server.settings(database_url, model, "unpriced")


async def ask(client: httpx.AsyncClient, caller: Caller, key: str = KEY, **body: Any) -> httpx.Response:
    headers = caller.headers | {"Idempotency-Key": key}
    return await client.post("/chat", headers=headers, json={"message": "Hi", "stream": False, **body})


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """The object that stands in the answer, or at the end of its stream."""
    assert response.status_code == 200, response.text
    if response.headers["content-type"] == "application/json":
        return dict(response.json())
    (first, ids), *deltas, (name, answer) = [event(block) for block in response.text.split("\n\n") if block]
    assert (first, name) == ("start", "done"), response.text
    assert (ids["conversation_id"], ids["message_id"]) == (answer["conversation_id"], answer["message"]["id"])
    assert ids["user_message_id"] < ids["message_id"]
    assert "".join(data["content"] for _, data in deltas) == (answer["message"]["content"] or "")
    assert (answer.pop("content"), answer.pop("done")) == ("", True)
    return answer


def event(block: str) -> tuple[str, dict[str, Any]]:
    fields = dict(line.split(": ", 1) for line in block.splitlines())
    return fields["event"], json.loads(fields["data"])


async def insist(client: httpx.AsyncClient, caller: Caller, **body: Any) -> dict[str, Any]:
    """Asks again and again as long as the same request is being answered."""
    while (response := await ask(client, caller, **body)).status_code == 409:
        check_still_running(response)
        await asyncio.sleep(0.05)
    return answer_of(response)


def check_still_running(response: httpx.Response) -> None:
    problems.check(response, 409)
    assert int(response.headers["retry-after"]) >= 1


async def counted(database: Database) -> list[Totals]:
    return list((await invariants.check(database)).values())


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_sent_again_is_answered_with_the_same_message(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, stream: bool
) -> None:
    answer = answer_of(await ask(client, ayu, stream=stream))
    for again in (True, False):
        assert answer_of(await ask(client, ayu, stream=again)) == answer
    assert answer["message"]["content"] == Answer().content
    assert len(model.requests) == 1
    assert await counted(database) == [ONCE]


async def test_a_request_sent_again_in_a_conversation_adds_nothing_to_it(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    conversation = answer_of(await ask(client, ayu, "first"))["conversation_id"]
    answers = [answer_of(await ask(client, ayu, conversation_id=conversation)) for _ in range(3)]
    assert answers == [answers[0]] * 3
    stored = await client.get(f"/conversations/{conversation}", headers=ayu.headers)
    assert [message["role"] for message in stored.json()["messages"]] == ["user", "assistant"] * 2
    assert stored.json()["messages"][-1].items() >= answers[0]["message"].items()
    assert await counted(database) == [TWICE]


async def test_sixteen_callers_at_once_get_one_message_and_one_count(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    model.answer = Answer(delay=0.2)
    answers = await asyncio.gather(*(insist(client, ayu, stream=number % 2 == 0) for number in range(16)))
    assert answers == [answers[0]] * 16
    assert len(model.requests) == 1
    assert await counted(database) == [ONCE]
    conversation = await client.get(f"/conversations/{answers[0]['conversation_id']}", headers=ayu.headers)
    assert len(conversation.json()["messages"]) == 2
    assert (await client.get("/conversations", headers=ayu.headers)).json()["total"] == 1


async def test_a_repeated_request_during_the_first_is_asked_to_retry(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    model.answer = Answer(stall_after=0)
    first = asyncio.create_task(ask(client, ayu))
    await asyncio.to_thread(model.wait_until, lambda: bool(model.requests))
    for stream in (True, False):
        check_still_running(await ask(client, ayu, stream=stream))
    problems.check(await ask(client, ayu, message="Something else"), 422)
    model.release()
    answer = answer_of(await first)
    assert await insist(client, ayu) == answer
    assert await counted(database) == [ONCE]


async def test_another_body_with_a_used_key_is_refused(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    answer = answer_of(await ask(client, ayu))
    others: list[dict[str, Any]] = [
        {"message": "Ho"},
        {"model": "another"},
        {"conversation_id": answer["conversation_id"]},
        {"message": "Ho", "stream": True},
    ]
    for other in others:
        assert problems.check(await ask(client, ayu, **other), 422)["errors"].keys() == {"Idempotency-Key"}
    assert answer_of(await ask(client, ayu)) == answer
    assert len(model.requests) == 1
    assert await counted(database) == [ONCE]


async def test_two_users_may_use_the_same_key(
    client: httpx.AsyncClient, database: Database, ayu: Caller, bela: Caller
) -> None:
    mine, theirs = answer_of(await ask(client, ayu)), answer_of(await ask(client, bela, message="Ho"))
    assert mine["message"]["id"] != theirs["message"]["id"]
    assert answer_of(await ask(client, ayu)) == mine
    assert answer_of(await ask(client, bela, message="Ho")) == theirs
    assert await counted(database) == [ONCE, ONCE]


@pytest.mark.parametrize("id_", [KEY, f"chat:{KEY}"])
async def test_a_key_and_the_id_of_a_usage_record_may_have_the_same_text(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller, id_: str
) -> None:
    record = records.record(ayu, id=id_, created_at="2024-06-15T12:00:00Z")
    answer = answer_of(await ask(client, ayu))
    await records.store(client, service, [record])
    answer_of(await ask(client, ayu, f"record:{id_}"))
    assert answer_of(await ask(client, ayu)) == answer
    assert (await records.post(client, service, [record])).json() == {"recorded": 0, "duplicates": 1}
    assert sorted(await counted(database)) == [ONCE, TWICE]


async def test_a_repeat_after_deletion_returns_no_content(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    answer = answer_of(await ask(client, ayu))
    conversation = answer["conversation_id"]
    assert (await client.delete(f"/conversations/{conversation}", headers=ayu.headers)).status_code == 204
    for stream in (True, False):
        again = answer_of(await ask(client, ayu, stream=stream))
        assert again == answer | {"message": answer["message"] | {"content": None}}
    assert len(model.requests) == 1
    assert await counted(database) == [ONCE]


async def test_a_request_that_failed_is_not_tried_again_under_its_key(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    model.answer = Answer(die_after=1, usage=usage(10, 5))
    first = await ask(client, ayu, stream=True)
    assert event(first.text.strip().split("\n\n")[-1])[0] == "error"
    model.answer = Answer()
    before = await counted(database)
    for stream in (True, False):
        problems.check(await ask(client, ayu, stream=stream), 502)
    assert len(model.requests) == 1
    assert await counted(database) == before
    assert [sums.message_count for sums in before] == [1]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [400, 401, 429])
@pytest.mark.sampled(2)
async def test_a_request_that_was_refused_may_be_sent_again(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, status: int, stream: bool
) -> None:
    model.answer = Answer(status=status, headers={"Retry-After": "120"})
    for _ in range(2):
        refused = await ask(client, ayu, stream=stream)
        assert refused.status_code != 200 or "event: error" in refused.text, refused.text
    assert await counted(database) == []
    model.answer = Answer()
    answer = answer_of(await ask(client, ayu, stream=stream))
    assert answer_of(await ask(client, ayu, stream=stream)) == answer
    assert len(model.requests) == 3
    assert await counted(database) == [ONCE]


async def test_a_key_has_one_to_255_characters(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    assert answer_of(await ask(client, ayu, "k" * 255)) == answer_of(await ask(client, ayu, "k" * 255))
    for key in ("", "k" * 256):
        problems.check(await ask(client, ayu, key), 422)
    assert await counted(database) == [ONCE]


async def test_without_a_key_each_request_is_its_own(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    body = {"message": "Hi", "stream": False}
    answers = [answer_of(await client.post("/chat", headers=ayu.headers, json=body)) for _ in range(2)]
    assert answers[0]["message"]["id"] != answers[1]["message"]["id"]
    assert await counted(database) == [TWICE]
