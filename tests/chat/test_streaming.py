"""`POST /chat` as its callers see it, and what is counted when the model, or the caller, does not play along."""

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from services.chat.openai_upstream import Timeouts
from services.chat.runner import Limits
from tests.support import invariants, problems
from tests.support.live_chat import (
    ASKED,
    HEARD,
    PIECES,
    QUESTION,
    Live,
    app_settings,
    ask,
    asked_in_both_ways,
    check,
    events,
    is_problem,
    limited,
    live,
    model,
    newcomer,
    request,
    settled,
)
from tests.support.openai_server import Answer, usage

__all__ = ["app_settings", "live", "model"]
pytestmark = pytest.mark.any_database


async def test_a_stream_is_deltas_and_then_the_object_of_no_stream(live: Live) -> None:
    headers = live.caller.headers | {"Idempotency-Key": "once"}
    async with live.client.stream("POST", "/chat", headers=headers, json={"message": QUESTION}) as answer:
        start, *deltas, last = [event async for event in events(answer)]
    whole = await live.client.post("/chat", headers=headers, json={"message": QUESTION, "stream": False})
    conversation = {"conversation_id": whole.json()["conversation_id"]}
    ids = {"message_id": last[1]["message"]["id"], "user_message_id": last[1]["message"]["id"] - 1}
    assert start == ("start", conversation | ids | {"content": "", "done": False})
    assert deltas == [("delta", {"content": piece, "done": False, **conversation}) for piece in PIECES]
    assert last == ("done", whole.json() | {"content": "", "done": True})
    assert last[1]["message"]["content"] == "".join(PIECES)
    await check(live, "complete", (10, 5, 0))


REPORTED: Mapping[str, tuple[Any, tuple[int, int, int]]] = {
    "as OpenAI does": (usage(100, 5, 40), (100, 5, 40)),
    "with a cache hit as part, as DeepSeek does": (
        {"prompt_tokens": 100, "completion_tokens": 5, "prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 36},
        (100, 5, 64),
    ),
    "with the cache beside, as Anthropic does": (
        usage(10, 5) | {"cache_read_input_tokens": 200, "cache_creation_input_tokens": 30},
        (240, 5, 200),
    ),
    "in both ways at once": (usage(240, 5, 200) | {"cache_read_input_tokens": 200}, (240, 5, 200)),
    "with odd details": (usage(10, 5) | {"prompt_tokens_details": "none"}, (10, 5, 0)),
    "with a cached count that is none": (usage(10, 5, -1), (10, 5, 0)),
}


async def test_usage_counts_as_it_is_reported(live: Live, subtests: pytest.Subtests) -> None:
    for way, (reported, tokens) in REPORTED.items():
        with subtests.test(way):
            live.model.answer = Answer(chunks=PIECES, usage=reported)
            async for other in asked_in_both_ways(live):
                await check(other, "complete", tokens)


UNTRUE: Mapping[str, tuple[Any, tuple[int, int]]] = {
    "absent": (None, (ASKED, HEARD[5])),
    "empty": ({}, (ASKED, HEARD[5])),
    "negative": (usage(-1, 5), (ASKED, 5)),
    "absurd": (usage(10**12, 5), (ASKED, 5)),
    "more cached than asked": (usage(10, 5, 11), (ASKED, 5)),
    "a fraction": ({"prompt_tokens": 10.5, "completion_tokens": 5}, (ASKED, 5)),
    "words": ({"prompt_tokens": "ten", "completion_tokens": "five"}, (ASKED, HEARD[5])),
    "not an object": (["ten", "five"], (ASKED, HEARD[5])),
    "a text": ("ten and five", (ASKED, HEARD[5])),
    "no output beside an answer": ({"prompt_tokens": 10, "completion_tokens": 0}, (10, HEARD[5])),
    "no input beside an answer": (usage(0, 5), (ASKED, 5)),
    "zeros": (usage(0, 0), (ASKED, HEARD[5])),
}


async def test_usage_that_is_missing_or_cannot_be_true_is_estimated(live: Live, subtests: pytest.Subtests) -> None:
    for way, (reported, tokens) in UNTRUE.items():
        with subtests.test(way):
            live.model.answer = Answer(content="".join(PIECES), chunks=PIECES, usage=reported)
            async for other in asked_in_both_ways(live):
                assert await check(other, "complete", (*tokens, 0), estimated=True) == "".join(PIECES)


async def test_of_cumulative_usage_the_last_counts(live: Live) -> None:
    live.model.answer = Answer(chunks=PIECES, usage=usage(10, 50), cumulative_usage=True)
    assert (await ask(live))[1][0] == "done"
    await check(live, "complete", (10, 50, 0))


async def test_the_model_that_answered_is_stored_and_priced(live: Live) -> None:
    live.model.answer = Answer(model="gpt-4o-mini", usage=usage(1000, 100, 400))
    async for other in asked_in_both_ways(live):
        await check(other, "complete", (1000, 100, 400), model="gpt-4o-mini")


BROKEN: Mapping[str, tuple[Answer, int, int]] = {
    "dies before the first piece": (Answer(die_after=0), 0, 502),
    "dies after two": (Answer(die_after=2), 2, 502),
    "says it is done before it is": (Answer(garbage="[DONE]", garbage_after=2), 2, 502),
    "talks garbage": (Answer(garbage="{garbage", garbage_after=3), 3, 502),
    "talks another format": (Answer(garbage='{"choices": 1}', garbage_after=3), 3, 502),
    "reports an error": (Answer(garbage='{"error": {"message": "no more"}}', garbage_after=4, usage=None), 4, 502),
    "stalls before the first piece": (Answer(stall_after=0), 0, 504),
    "stalls after two": (Answer(stall_after=2), 2, 504),
}


async def test_when_a_stream_breaks_what_was_heard_is_counted(live: Live, subtests: pytest.Subtests) -> None:
    for way, (answer, heard, status) in BROKEN.items():
        with subtests.test(way):
            live.model.answer = replace(answer, chunks=PIECES)
            other = await newcomer(live)
            async with limited(other, Timeouts(read=1)):
                pieces, last = await ask(other)
            assert pieces == list(PIECES[:heard])
            assert is_problem(last, status)
            counted = ASKED, HEARD[heard], 0
            content = await check(other, "interrupted" if heard else "failed", counted, estimated=True)
            assert content == "".join(pieces)
            assert len(live.model.requests) == 1


WRONG: Mapping[str, tuple[Answer, bool, int]] = {
    "dies within": (Answer(die_after=0), True, 502),
    "stalls": (Answer(stall_after=0), True, 504),
    "talks garbage": (Answer(garbage="{garbage"), True, 502),
    "talks another format": (Answer(garbage='{"choices": []}'), True, 502),
    "refuses the request": (Answer(status=400), False, 502),
    "refuses the key": (Answer(status=401), False, 502),
    "is broken": (Answer(status=500), False, 502),
}


async def test_without_a_stream_a_failure_is_a_problem(live: Live, subtests: pytest.Subtests) -> None:
    for way, (answer, accepted, status) in WRONG.items():
        with subtests.test(way):
            live.model.answer = answer
            other = await newcomer(live)
            async with limited(other, Timeouts(read=1)):
                problems.check(await other.client.post(**request(other, stream=False)), status)
            await check(other, "failed", (ASKED, 0, 0) if accepted else None, estimated=True)


async def test_a_refusal_counts_nothing(live: Live, subtests: pytest.Subtests) -> None:
    for status, times in {400: 1, 401: 1, 429: 3, 500: 3, 503: 3}.items():
        with subtests.test(status=status):
            live.model.answer = Answer(status=status, error="with a secret: Traceback")
            other = await newcomer(live)
            pieces, last = await ask(other)
            assert pieces == []
            assert is_problem(last, 502)
            assert len(live.model.requests) == times
            await check(other, "failed", None)


async def test_a_model_that_is_busy_is_asked_again_and_counted_once(live: Live) -> None:
    answers = iter([Answer(status=503), Answer(status=429), Answer(chunks=PIECES)])
    live.model.answer = lambda _request: next(answers)
    pieces, (name, _) = await ask(live)
    assert (pieces, name) == (list(PIECES), "done")
    assert len(live.model.requests) == 3
    await check(live, "complete", (10, 5, 0))


async def test_a_model_that_cannot_be_reached_counts_nothing(live: Live) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nowhere = f"http://127.0.0.1:{gone.getsockname()[1]}/v1"
    async with limited(live, url=nowhere):
        assert is_problem((await ask(live))[1], 502)
        await check(live, "failed", None)
        other = await newcomer(live)
        problems.check(await other.client.post(**request(other, stream=False)), 502)
        await check(other, "failed", None)


async def test_a_model_without_connections_is_a_timeout_and_free(live: Live) -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # the system takes a few by itself, and then no more
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        async with limited(live, Timeouts(connect=0.2), url=f"http://127.0.0.1:{full.getsockname()[1]}/v1"):
            problems.check(await live.client.post(**request(live, stream=False)), 504)
    await check(live, "failed", None)


async def test_an_endless_answer_is_interrupted_and_its_text_counted(live: Live) -> None:
    live.model.answer = Answer(chunks=[" a"] * 10_000, chunk_delay=0.01)
    async with limited(live, limits=Limits(answer=1)):
        pieces, last = await ask(live)
    assert is_problem(last, 504)
    assert pieces
    assert await check(live, "interrupted", (ASKED, len(pieces), 0), estimated=True) == "".join(pieces)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_of_unstorable_text_is_stored_as_far_as_possible(live: Live, stream: bool) -> None:
    content = "Hello\x00, \ud800 there"
    live.model.answer = Answer(content=content, chunks=["Hello", "\x00", ", \ud800 there"], model="gpt-4o")
    answer = await live.client.post(**request(live, stream=stream))
    assert answer.status_code == 200, answer.text
    stored = await check(live, "complete", (10, 5, 0))
    assert stored.startswith("Hello")
    assert stored.endswith(" there")


async def test_a_model_with_an_odd_name_does_not_hinder_counting(live: Live) -> None:
    for name in ("a\x00b", "\ud800", "m" * 100_000, ""):
        live.model.answer = Answer(chunks=PIECES, model=name)
        async for other in asked_in_both_ways(live):
            row = await settled(other)
            assert (row.status, row.input_tokens, row.output_tokens) == ("complete", 10, 5)
    await invariants.check(live.database)
