"""What `OpenAIUpstream` makes of the bytes that services really send: text, tokens, cost, and how the answer ended."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from services.chat.openai_upstream import OpenAIUpstream
from tests.support.openai_server import Answer, OpenAIServer
from tests.support.raw_answers import DONE, S, Stream, U, ask, choices, chunk, event, usage, whole

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
