"""What `OpenAIUpstream` makes of the bytes that services really send: text, tokens, cost, and how the answer ended."""

import gzip
import json
import time
import tracemalloc
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from app.errors import UpstreamError, UpstreamTimeout
from services.chat import completions
from services.chat.openai_upstream import OpenAIUpstream
from services.chat.tokenizer import Prompt
from services.chat.upstream import Reply
from services.usage.pricing import Priced, PriceList
from tests.support import openai_server
from tests.support.openai_server import Answer, OpenAIServer

AT = datetime(2026, 11, 25, 12, tzinfo=UTC)
PROMPTS: list[Prompt] = [{"role": "user", "content": "What is a tide pool, in one sentence?"}]


@dataclass
class Asked:
    """What came of a question."""

    pieces: list[str]
    reply: Reply
    error: UpstreamError | None
    seconds: float

    @property
    def tokens(self) -> tuple[int, int] | None:
        """Input and output as reported, or estimated in part."""
        return self.reply.tokens and self.reply.tokens[:2]

    @property
    def cost(self) -> Decimal | None:
        """What the answer costs at a vendor's."""
        assert self.reply.tokens is not None
        api_url = "https://openrouter.ai/api/v1" if self.reply.cost is not None else None
        priced = Priced(
            self.reply.model,
            AT,
            *self.reply.tokens[:3],
            api_url,
            details=self.reply.details,
            reported_cost=self.reply.cost,
        )
        return PriceList().price(priced).cost


async def ask(upstream: OpenAIUpstream, model: str = "gpt-4o", *, stream: bool = True) -> Asked:
    pieces: list[str] = []
    started = time.monotonic()
    error = None
    try:
        reply = await upstream.ask(PROMPTS, model, pieces.append if stream else None)
    except UpstreamError as failed:
        error, reply = failed, failed.partial or Reply("", model, None)
    return Asked(pieces, reply, error, time.monotonic() - started)


def chunk(model: str, delta: Any, reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice], **more}


def event(value: Any) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Stream:
    """The common lines of the streams, of one model."""

    model: str = "gpt-4o"
    a: bytes = field(init=False)
    b: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", event(chunk(self.model, {"content": "Hello"})))
        object.__setattr__(self, "b", event(chunk(self.model, {}, "stop")))

    def u(self, usage: Any, **more: Any) -> bytes:
        """The chunk with usage."""
        return event({**chunk(self.model, {}), "choices": [], "usage": usage, **more})


S = Stream()
U = S.u(openai_server.usage(190, 100))


def usage(prompt: Any, completion: Any, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


def whole(model: str, report: Any, *, content: Any = "Hello", reason: str = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": reason}
    body = {"id": "c1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], **more}
    return json.dumps(body | ({} if report is None else {"usage": report})).encode()


REPORTED: Mapping[str, tuple[str, dict[str, Any], tuple[int, int], str | None]] = {
    "xAI, reasoning beside": (
        "grok-4",
        usage(10120, 1499, total_tokens=14428, prompt_tokens_details={"cached_tokens": 128})
        | {"completion_tokens_details": {"reasoning_tokens": 2809}},
        (10120, 4308),
        "0.094692",
    ),
    "Gemini, thinking in the total": ("gemini-2.5-flash", usage(20, 198, total_tokens=623), (20, 603), "0.0015135"),
    "Anthropic through a proxy": (
        "claude-sonnet-4-5",
        usage(5020, 40, total_tokens=5060, cache_creation_input_tokens=5000)
        | {"prompt_tokens_details": {"cached_tokens": 0}},
        (5020, 40),
        "0.01941",
    ),
    "xAI, cached beside": (
        "grok-4-0709",
        usage(348, 435, total_tokens=7583, prompt_tokens_details={"cached_tokens": 6800}),
        (7148, 435),
        "0.012669",
    ),
    "Anthropic, cache beside": (
        "claude-sonnet-4-5",
        usage(50, 10, cache_read_input_tokens=100000, cache_creation_input_tokens=248),
        (100298, 10),
        "0.03123",
    ),
    "Anthropic, written": (
        "claude-opus-4-5",
        usage(98805, 5120, total_tokens=103925, cache_creation_input_tokens=32435)
        | {"prompt_tokens_details": {"cached_tokens": 66360}},
        (98805, 5120),
        "0.36394875",
    ),
    "Anthropic, written for an hour": (
        "claude-opus-4-5",
        usage(10, 0, cache_creation_input_tokens=1000, output_tokens=1)
        | {"cache_creation": {"ephemeral_1h_input_tokens": 1000, "ephemeral_5m_input_tokens": 0}},
        (1010, 1),
        "0.010075",
    ),
    "numbers as texts": ("gpt-4o", usage("190", 100.0, total_tokens="290"), (190, 100), "0.001475"),
    "OpenRouter's cost": ("openai/gpt-4o", usage(100, 50, total_tokens=150, cost=0.00123), (100, 50), "0.00123"),
    "an unlisted model's cost": ("nobody/knows-it", usage(100, 50, cost="0.00777"), (100, 50), "0.00777"),
    "a free model's cost": ("meta-llama/llama-3.3-70b-instruct:free", usage(100, 50, cost=0), (100, 50), "0"),
    "flex": ("gpt-5-mini", usage(1000, 100, total_tokens=1100, service_tier="flex"), (1000, 100), "0.000225"),
    "audio": (
        "gemini-2.5-flash",
        usage(1000, 100, total_tokens=1100, prompt_tokens_details={"audio_tokens": 500}),
        (1000, 100),
        "0.0009",
    ),
}


@pytest.mark.parametrize(("named", "report", "tokens", "cost"), REPORTED.values(), ids=REPORTED)
async def test_a_report_counts_the_same_in_every_form_of_answer(
    model: OpenAIServer,
    upstream: OpenAIUpstream,
    named: str,
    report: dict[str, Any],
    tokens: tuple[int, int],
    cost: str | None,
) -> None:
    stream = Stream(named)
    tier = {"service_tier": report["service_tier"]} if "service_tier" in report else {}
    forms = {
        "after the end": [stream.a, stream.b, stream.u(report, **tier), DONE],
        "with the end": [stream.a, event(chunk(named, {}, "stop", usage=report, **tier)), DONE],
        "in the choice": [
            stream.a,
            event(chunk(named, {}) | {"choices": [{"index": 0, "finish_reason": "stop", "usage": report}], **tier}),
            DONE,
        ],
        "in x_groq": [stream.a, event(chunk(named, {}, "stop", x_groq={"id": "r", "usage": report}, **tier)), DONE],
        "twice, and then empty": [
            stream.a,
            stream.b,
            stream.u(report, **tier) * 2,
            stream.u(usage(0, 0, total_tokens=0)),
            DONE,
        ],
        "whole": [whole(named, report, **tier)],
    }
    for name, raw in forms.items():
        for asked_for_stream in (True, False):
            model.answer = Answer(raw=raw)
            asked = await ask(upstream, named, stream=asked_for_stream)
            assert asked.error is None, name
            assert (asked.reply.content, asked.tokens) == ("Hello", tokens), name
            assert asked.pieces == (["Hello"] if asked_for_stream else []), name
            assert asked.reply.tokens
            assert not asked.reply.tokens.estimated, name
            assert asked.cost == (None if cost is None else Decimal(cost)), name


def choices(value: Any) -> bytes:
    return event({"id": "c1", "object": "chat.completion.chunk", "model": "gpt-4o"} | value)


HARMLESS: Mapping[str, bytes] = {
    "a choice without delta": choices({"choices": [{"index": 0, "content_filter_offsets": {"start_offset": 1}}]}),
    "no delta": choices({"choices": [{"index": 0, "delta": None, "finish_reason": None}]}),
    "null choices": choices({"choices": None}),
    "no choices": choices({}),
    "a null choice": choices({"choices": [None]}),
    "another choice": choices({"choices": [{"index": 1, "delta": {"content": "Other"}, "finish_reason": "stop"}]}),
    "no model": choices({"model": None, "choices": []}),
    "null": b"data: null\n\n",
    "a ping": b'data: {"type":"ping"}\n\n',
    "progress": b'data: {"status":"processing","message":"in the queue"}\n\ndata: {"code":0,"msg":"ok"}\n\n',
    "success": b'data: {"success":true,"code":200,"message":"started","detail":"soon"}\n\n',
    "an empty event": b"data:\n\n",
    "a pause": b"retry: 3000\n\n",
    "an id and a comment": b"id: 1\n\n: ping\n\n",
    "a null error": choices({"error": None, "choices": []}),
    "null usage": choices({"usage": None, "choices": []}),
    "null content": event(chunk("gpt-4o", {"role": "assistant", "content": None})),
    "empty content": event(chunk("gpt-4o", {"role": "assistant", "content": "", "refusal": None})),
    "no parts": event(chunk("gpt-4o", {"content": []})),
    "an empty reason": event(chunk("gpt-4o", {}, "")),
    "a reason that says null": event(chunk("gpt-4o", {}, "null")),
}


@pytest.mark.parametrize("noise", HARMLESS.values(), ids=HARMLESS)
async def test_what_is_harmless_in_a_stream_changes_nothing(
    model: OpenAIServer, upstream: OpenAIUpstream, noise: bytes
) -> None:
    for raw in ([noise, S.a, S.b, U, DONE], [S.a, noise, S.b, U, DONE], [S.a, S.b, noise, U, noise, DONE]):
        model.answer = Answer(raw=raw)
        asked = await ask(upstream)
        assert (asked.error, asked.pieces, asked.tokens) == (None, ["Hello"], (190, 100))
        assert asked.reply.finish_reason == "stop"


def said(*deltas: Any, reason: str = "stop") -> list[bytes]:
    return [*(event(chunk("gpt-4o", delta)) for delta in deltas), event(chunk("gpt-4o", {}, reason)), U, DONE]


THINKING = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hmm"}]}]
SPOKEN: Mapping[str, tuple[list[bytes], str, str, str]] = {
    "parts": (said({"content": THINKING}, {"content": [{"type": "text", "text": "Hi"}]}), "Hi", "Hmm", "stop"),
    "one part": (said({"content": {"type": "text", "text": "Hi"}}), "Hi", "", "stop"),
    "reasoning_content": (said({"reasoning_content": "Hmm"}, {"content": "Hi"}), "Hi", "Hmm", "stop"),
    "reasoning": (said({"reasoning": "Hmm", "content": "Hi"}), "Hi", "Hmm", "stop"),
    "reasoning in two fields": (
        said({"reasoning": "Hmm", "reasoning_details": [{"type": "reasoning.text", "text": "Hmm"}]}, {"content": "Hi"}),
        "Hi",
        "Hmm",
        "stop",
    ),
    "a refusal": (said({"refusal": "I cannot."}), "I cannot.", "", "refusal"),
    "a refusal with a reason": (said({"refusal": "No."}, reason="content_filter"), "No.", "", "content_filter"),
    "a filter": (said(reason="content_filter"), "", "", "content_filter"),
    "a vendor's filter": (said({"content": "H"}, reason="SAFETY"), "H", "", "content_filter"),
    "too long": (said({"content": "H"}, reason="length"), "H", "", "length"),
    "too long, another word": (said({"content": "H"}, reason="MAX_TOKENS"), "H", "", "length"),
    "a tool": (said({"tool_calls": [{"index": 0}]}, reason="tool_calls"), "", "", "tool_calls"),
    "another word": (said({"content": "H"}, reason="Because"), "H", "", "because"),
    "half an emoji in each piece": (
        [b'data: {"choices":[{"delta":{"content":"\\ud83e"}}]}\n\n', *said({"content": "\udd84"})],
        "\U0001f984",
        "",
        "stop",
    ),
    "a message instead of a delta": (
        [event({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}), U, DONE],
        "Hi",
        "",
        "stop",
    ),
    "messages in pieces": (
        [
            *(event({"choices": [{"message": {"content": piece}}]}) for piece in ("Hello", " there")),
            S.b,
            U,
        ],
        "Hello there",
        "",
        "stop",
    ),
    "messages that grow": (
        [*(event({"choices": [{"message": {"content": piece}}]}) for piece in ("Hello", "Hello there")), S.b, U],
        "Hello there",
        "",
        "stop",
    ),
    "the whole message again": (
        [S.a, event({"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]}), U, DONE],
        "Hello",
        "",
        "stop",
    ),
    "old completions": ([event({"choices": [{"text": "Hi"}]}), S.b, U, DONE], "Hi", "", "stop"),
}


@pytest.mark.parametrize(("raw", "content", "reasoning", "reason"), SPOKEN.values(), ids=SPOKEN)
async def test_what_a_model_says_is_shown_and_how_it_ended_is_known(
    model: OpenAIServer, upstream: OpenAIUpstream, raw: list[bytes], content: str, reasoning: str, reason: str
) -> None:
    for stream in (True, False):
        model.answer = Answer(raw=raw)
        asked = await ask(upstream, stream=stream)
        assert asked.error is None
        assert (asked.reply.content, asked.reply.reasoning) == (content, reasoning)
        assert asked.reply.finish_reason == reason
        assert asked.tokens == (190, 100)
        assert "".join(asked.pieces) == (content if stream else "")


async def test_a_whole_body_may_hold_parts_reasoning_and_a_refusal(
    model: OpenAIServer, upstream: OpenAIUpstream
) -> None:
    report = openai_server.usage(190, 100)
    parts = [*THINKING, {"type": "text", "text": "Hi"}]
    model.answer = Answer(raw=[whole("gpt-4o", report, content=parts)])
    reply = (await ask(upstream, stream=False)).reply
    assert (reply.content, reply.reasoning, reply.finish_reason) == ("Hi", "Hmm", "stop")
    refused = {"choices": [{"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}], "usage": report}
    model.answer = Answer(raw=[json.dumps(refused).encode()])
    reply = (await ask(upstream, stream=False)).reply
    assert (reply.content, reply.finish_reason) == ("No.", "refusal")


ENDS: Mapping[str, tuple[list[bytes], float, tuple[int, int] | None]] = {
    "reported and said so": ([S.a, S.b, U, DONE], 1, (190, 100)),
    "reported": ([S.a, S.b, U], 1, (190, 100)),
    "reported with the end": ([S.a, event(chunk("gpt-4o", {}, "stop", usage=usage(190, 100)))], 1, (190, 100)),
    "finished": ([S.a, S.b], 10, None),
    "done, and still talking": ([S.a, S.b, U, DONE, S.a, S.a], 1, (190, 100)),
}  # fmt: skip


@pytest.mark.parametrize("end", ["open", "cut", "complete"])
@pytest.mark.parametrize(("raw", "seconds", "tokens"), ENDS.values(), ids=ENDS)
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
