"""An answer ends when it is complete, breaks off, stalls, or grows too long."""

import gzip
import tracemalloc
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from app.errors import UpstreamError, UpstreamTimeout
from services.chat import completions
from services.chat.openai_upstream import OpenAIUpstream
from tests.support.openai_server import Answer, OpenAIServer
from tests.support.raw_answers import DONE, S, U, ask, choices, chunk, event, usage, whole

ENDS: Mapping[str, tuple[list[bytes], float, tuple[int, int] | None]] = {
    "reported and said so": ([S.a, S.b, U, DONE], 1, (190, 100)),
    "reported": ([S.a, S.b, U], 1, (190, 100)),
    "reported with the end": ([S.a, event(chunk("gpt-4o", {}, "stop", usage=usage(190, 100)))], 1, (190, 100)),
    "finished": ([S.a, S.b], 10, None),
    "done, and still talking": ([S.a, S.b, U, DONE, S.a, S.a], 1, (190, 100)),
}  # fmt: skip


@pytest.mark.parametrize("end", ["open", "cut", "complete"])
@pytest.mark.parametrize(("raw", "seconds", "tokens"), ENDS.values(), ids=ENDS)
@pytest.mark.sampled(5)
async def test_an_answer_ends_when_finished_not_when_the_socket_closes(
    model: OpenAIServer,
    upstream: OpenAIUpstream,
    raw: list[bytes],
    seconds: float,
    tokens: tuple[int, int] | None,
    end: Any,
) -> None:
    model.answer = Answer(raw=raw, end=end)
    asked = await ask(upstream)
    assert (asked.error, asked.pieces, asked.tokens) == (None, ["Hello"], tokens)
    assert asked.seconds < seconds


async def test_a_service_that_goes_on_sending_comments_is_left(model: OpenAIServer, upstream: OpenAIUpstream) -> None:
    model.answer = Answer(raw=[S.a, S.b, U, *[b": ping\n\n"] * 100], chunk_delay=0.1)
    asked = await ask(upstream)
    assert (asked.error, asked.tokens) == (None, (190, 100))
    assert asked.seconds < 3


async def test_a_reason_and_usage_in_every_chunk_do_not_end_the_answer(
    model: OpenAIServer, upstream: OpenAIUpstream
) -> None:
    pieces = [
        event(chunk("gpt-4o", {"content": "Hi "}, "stop", usage=usage(190, count, total_tokens=190 + count)))
        for count in range(1, 11)
    ]
    model.answer = Answer(raw=[*pieces, DONE], chunk_delay=0.1)
    asked = await ask(upstream)
    assert (asked.reply.content, asked.tokens) == ("Hi " * 10, (190, 10))


async def test_usage_of_an_earlier_chunk_does_not_end_the_answer(model: OpenAIServer, upstream: OpenAIUpstream) -> None:
    early = event(chunk("gpt-4o", {"content": "Hello"}, usage=usage(190, 2, total_tokens=192)))
    model.answer = Answer(raw=[early, early, S.b, U, DONE], chunk_delay=0.05)
    asked = await ask(upstream)
    assert (asked.reply.content, asked.tokens) == ("HelloHello", (190, 100))


EARLY = event(chunk("gpt-4o", {"content": "Hello"}, usage=usage(190, 2, total_tokens=192)))
DISCONNECTED = {"error": {"code": "server_error", "message": "Provider disconnected unexpectedly"}}
BROKEN: Mapping[str, tuple[list[bytes], str, tuple[int, int] | None]] = {
    "an error after usage": (
        [EARLY, event(chunk("gpt-4o", {"content": ""}, "error") | DISCONNECTED), DONE],
        "Hello",
        (190, 2),
    ),
    "an error in a choice": (
        [EARLY, event({"choices": [{"index": 0, "delta": {"content": ""}, **DISCONNECTED}]})],
        "Hello",
        (190, 2),
    ),
    "an error, then usage": ([S.a, event(DISCONNECTED), U, DONE], "Hello", (190, 100)),
    "an error event": ([EARLY, b'event: error\ndata: {"message": "no more"}\n\n'], "Hello", (190, 2)),
    "an error event of words": ([EARLY, b"event: error\ndata: no more\n\n"], "Hello", (190, 2)),
    "an error event of a text": ([EARLY, b'event: error\ndata: "no more"\n\n'], "Hello", (190, 2)),
    "Groq's error": ([EARLY, choices({"x_groq": {"error": "over capacity"}, "choices": []})], "Hello", (190, 2)),
    "usage before the text": ([S.u(usage(190, 2, total_tokens=192)), S.a], "Hello", (190, 2)),
    "an error without data": ([EARLY, b'{"error": "no more"}\n'], "Hello", (190, 2)),
    "the reason error": ([S.a, event(chunk("gpt-4o", {}, "error")), U, DONE], "Hello", (190, 100)),
    "a lack of resources": ([S.a, event(chunk("gpt-4o", {}, "insufficient_system_resource")), U], "Hello", (190, 100)),
    "a cut": ([EARLY], "Hello", (190, 2)),
    "the end before the end": ([S.a, DONE], "Hello", None),
    "garbage": ([EARLY, b"data: {garbage\n\n", U, DONE], "Hello", (190, 2)),
    "usage alone": ([event(chunk("gpt-4o", {}, usage=usage(190, 0, total_tokens=190)))], "", (190, 0)),
}


@pytest.mark.parametrize(("raw", "content", "tokens"), BROKEN.values(), ids=BROKEN)
async def test_what_was_reported_counts_though_the_answer_broke_off(
    model: OpenAIServer, upstream: OpenAIUpstream, raw: list[bytes], content: str, tokens: tuple[int, int] | None
) -> None:
    model.answer = Answer(raw=raw)
    asked = await ask(upstream)
    assert asked.error is not None
    assert (asked.error.status, asked.error.accepted) == (502, True)
    assert (asked.reply.content, asked.tokens, "".join(asked.pieces)) == (content, tokens, content)
    assert len(model.requests) == 1


async def test_a_stall_counts_what_was_reported_and_is_a_timeout(model: OpenAIServer, upstream: OpenAIUpstream) -> None:
    model.answer = Answer(raw=[EARLY], end="open")
    asked = await ask(upstream)
    assert isinstance(asked.error, UpstreamTimeout)
    assert (asked.error.accepted, asked.tokens) == (True, (190, 2))


async def test_of_half_a_report_the_other_half_is_estimated(model: OpenAIServer, upstream: OpenAIUpstream) -> None:
    model.answer = Answer(raw=[S.a, S.b, S.u(usage(190, 37.25)), DONE])
    tokens = (await ask(upstream)).reply.tokens
    assert tokens == (190, 1, 0, True)


ENDLESS = "x" * 2**20


async def test_an_answer_without_end_is_ended_as_one_of_its_length(
    model: OpenAIServer, upstream: OpenAIUpstream
) -> None:
    for raw in ([event(chunk("gpt-4o", {"content": ENDLESS}))] * 6, [whole("gpt-4o", None, content=ENDLESS * 6)]):
        model.answer = Answer(raw=raw)
        asked = await ask(upstream)
        assert asked.error is None
        assert len(asked.reply.content) == completions.MAX_ANSWER_CHARACTERS
        assert (asked.reply.finish_reason, asked.tokens) == ("length", None)
        assert "".join(asked.pieces) == asked.reply.content


MEGABYTE = 2**20


@pytest.mark.long
@pytest.mark.parametrize("codings", [1, 2])
@pytest.mark.parametrize("status", [200, 500])
async def test_a_compressed_answer_is_bounded_by_what_it_unpacks_to(
    model: OpenAIServer, upstream: OpenAIUpstream, codings: int, status: int
) -> None:
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(
        [packer.compress(b"data: "), *(packer.compress(b" " * MEGABYTE) for _ in range(512)), packer.flush()]
    )
    if codings == 2:
        bomb = gzip.compress(bomb)
    model.answer = Answer(raw=[bomb], status=status, headers={"Content-Encoding": ", ".join(["gzip"] * codings)})
    tracemalloc.start()
    try:
        asked = await ask(upstream)
        assert tracemalloc.get_traced_memory()[1] < 256 * MEGABYTE
    finally:
        tracemalloc.stop()
    assert isinstance(asked.error, UpstreamError)


@pytest.mark.parametrize("parts", [["Hello"] * 20_000, ["x" * 3_000_000]], ids=["many", "large"])
async def test_many_and_large_chunks_are_read(
    model: OpenAIServer, upstream: OpenAIUpstream, parts: Sequence[str]
) -> None:
    stream = b"".join(event(chunk("gpt-4o", {"content": part})) for part in parts) + S.b + U + DONE
    model.answer = Answer(raw=[stream[start : start + 65_536] for start in range(0, len(stream), 65_536)])
    asked = await ask(upstream)
    assert (asked.error, asked.tokens, asked.reply.content) == (None, (190, 100), "".join(parts))
