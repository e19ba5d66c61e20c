"""What a model says, streamed or whole: text, reasoning, refusals, and how the answer ended."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from services.chat.openai_upstream import OpenAIUpstream
from tests.support import openai_server
from tests.support.openai_server import Answer, OpenAIServer
from tests.support.raw_answers import DONE, S, U, ask, chunk, event, whole


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
