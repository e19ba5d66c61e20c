"""Answers as many vendors send them, as bytes through `POST /chat`: tokens, cost and end, streamed and whole."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support import openai_server
from tests.support.billed_answers import A, B, Stored, Talk, U, answer_to, check, whole
from tests.support.chunks import DONE, chunk, event, usage
from tests.support.openai_server import Answer, OpenAIServer

pytestmark = pytest.mark.any_database


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The application asks the tests' model."""
    return openai_server.settings(database_url, model)


def of_100(**more: Any) -> dict[str, Any]:
    return usage(100, 50, total_tokens=150, **more)


def anthropic(**more: Any) -> dict[str, Any]:
    return {"input_tokens": 20, "output_tokens": 40, "cache_creation_input_tokens": 5000, **more}


SPLIT = {"ephemeral_5m_input_tokens": 2000, "ephemeral_1h_input_tokens": 3000}
LIST = Stored((100, 50), "0.00075")
REPORTED: Mapping[str, tuple[str, Any, Stored]] = {
    "Perplexity's cost": (
        "gpt-4o",
        of_100(cost={"input_tokens_cost": 0.0001, "output_tokens_cost": 0.00005, "total_cost": 0.006994}),
        Stored((100, 50), "0.006994"),
    ),
    "xAI's ticks": ("grok-4", of_100(cost_in_usd_ticks=37756000), Stored((100, 50), "0.0037756")),
    "DeepInfra's estimate": ("gpt-4o", of_100(estimated_cost=8.775e-06), Stored((100, 50), "0.000008775")),
    "a cost in another currency": ("gpt-4o", of_100(cost={"total": 0.01, "currency": "CNY"}), LIST),
    "no cost": ("gpt-4o", of_100(cost=None, cost_details={"upstream_inference_cost": None}), LIST),
    "a cost that is no number": ("gpt-4o", of_100(cost=float("nan")), LIST),
    "a negative cost": ("gpt-4o", of_100(cost=-1), LIST),
    "the vendor's own charge": (
        "gpt-4o",
        of_100(cost=0, is_byok=True, cost_details={"upstream_inference_cost": 0.0007}),
        Stored((100, 50), "0.0007"),
    ),
    "thinking alone": (
        "gpt-4o",
        usage(21, 0, total_tokens=81, completion_tokens_details={"reasoning_tokens": 60}),
        Stored((21, 60), "0.0006525"),
    ),
    "no output, but a total": ("gpt-4o", {"prompt_tokens": 7, "total_tokens": 60}, Stored((7, 53), "0.0005475")),
    "written for an hour": (
        "claude-sonnet-4-5",
        anthropic(cache_creation={"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 5000}),
        Stored((5020, 40), "0.03066"),
    ),
    "written for both durations": ("claude-sonnet-4-5", anthropic(cache_creation=SPLIT), Stored((5020, 40), "0.02616")),
    "LiteLLM's durations": (
        "claude-sonnet-4-5",
        usage(5020, 40, total_tokens=5060, cache_creation_input_tokens=5000)
        | {"prompt_tokens_details": {"cached_tokens": 0, "cache_creation_token_details": SPLIT}},
        Stored((5020, 40), "0.02616"),
    ),
    "New API's durations": (
        "claude-sonnet-4-5",
        usage(5020, 40, total_tokens=5060, prompt_tokens_details={"cached_creation_tokens": 5000})
        | {"claude_cache_creation_5_m_tokens": 2000, "claude_cache_creation_1_h_tokens": 3000},
        Stored((5020, 40), "0.02616"),
    ),
    "Cohere's billed units": (
        "gpt-4o",
        {"billed_units": {"input_tokens": 5, "output_tokens": 10.0}, "tokens": {"input_tokens": 71}},
        Stored((5, 10), "0.0001125"),
    ),
    "whole floats": ("gpt-4o", usage(100.0, "50.0", total_tokens="150"), LIST),
    "a total of zero": ("gpt-4o", usage(100, 50, total_tokens=0), LIST),
    "null details": (
        "gpt-4o",
        of_100(prompt_tokens_details=None, completion_tokens_details={"audio_tokens": None}),
        LIST,
    ),
    "both vendors' names": ("gpt-4o", of_100(input_tokens=0, output_tokens=0, input_tokens_details=None), LIST),
    "a default tier": ("gpt-4o", of_100(service_tier="default"), LIST),
    "an absurd input": ("gpt-4o", usage(10**30, 5, total_tokens=10**30), Stored((17, 5), "0.0000925", estimated=True)),
    "infinity": ("gpt-4o", usage(float("inf"), 5), Stored((17, 5), "0.0000925", estimated=True)),
    "truth values": ("gpt-4o", usage(True, False, total_tokens=1), Stored((17, 1), "0.0000525", estimated=True)),
}


@pytest.mark.sampled(1)
async def test_every_vendors_report_is_counted_and_priced(talk: Talk, subtests: pytest.Subtests) -> None:
    for name, (answered, report, expected) in REPORTED.items():
        with subtests.test(name):
            message, _ = await talk.report(report, expected, name=answered)
            assert message["cost"] == expected.cost


def choice(**fields: Any) -> bytes:
    return event({"id": "c1", "model": "gpt-4o", "choices": [{"index": 0, **fields}]})


def ended(word: Any) -> list[bytes]:
    return [A, chunk({}, word), U, DONE]


FULL = usage(190, 100, total_tokens=290)
SAME = Stored((190, 100), "0.001475")
FILTERED = Stored((190, 100), "0.001475", reason="content_filter")
CUT = Stored((190, 100), "0.001475", reason="length")
BROKEN = Stored((190, 100), "0.001475", "interrupted", "error")
NOTHING = Stored(None, None, "failed", "error", "", estimated=None)
REFUSED = Stored((190, 100), "0.001475", reason="refusal", content="No.")
ANSWERS: Mapping[str, tuple[list[bytes], Stored]] = {
    "usage after the end": ([A, B, DONE, U], SAME),
    "usage before the text": ([U, A, B, DONE], SAME),
    "usage in one chunk of many": ([chunk({"content": "Hello"}, usage=None), chunk({}, "stop", usage=None), U], SAME),
    "Amazon's metrics": (
        [
            A,
            B,
            event({"amazon-bedrock-invocationMetrics": {"inputTokenCount": 190, "outputTokenCount": 100}}),
            DONE,
        ],
        SAME,
    ),
    "a cost in a later report": (
        [A, chunk({}, "stop", usage=FULL), chunk({}, choices=[], usage=FULL | {"cost": 0.5}), DONE],
        Stored((190, 100), "0.5"),
    ),
    "two choices": (
        [A, event({"choices": [{"index": 1, "delta": {"content": "X"}, "finish_reason": "length"}]}), B, U],
        SAME,
    ),
    "a refusal as a part": ([chunk({"content": [{"type": "refusal", "refusal": "No."}]}), B, U, DONE], REFUSED),
    "Gemini's reason in a sentence": (ended("content_filter: RECITATION"), FILTERED),
    "Gemini's malformed call": (ended("function_call_filter: MALFORMED_FUNCTION_CALL"), BROKEN),
    "an enumeration's name": (ended("FinishReason.MAX_TOKENS"), CUT),
    "an image that is prohibited": (ended("IMAGE_PROHIBITED_CONTENT"), FILTERED),
    "Cohere's toxic error": (ended("ERROR_TOXIC"), FILTERED),
    "Cohere's limit": (ended("ERROR_LIMIT"), CUT),
    "Zhipu's filter": (ended("sensitive"), FILTERED),
    "Zhipu's network": (ended("network_error"), BROKEN),
    "Baidu's normal end": (ended("normal"), SAME),
    "SGLang's object": ([A, choice(delta={}, finish_reason={"type": "length", "length": 5}), U, DONE], CUT),
    "a limit, then a stop": ([A, chunk({}, "length"), B, U, DONE], CUT),
    "a filter, then a stop": ([A, chunk({}, "content_filter"), B, U, DONE], FILTERED),
    "an error, then a stop": ([A, chunk({}, "error"), B, U, DONE], BROKEN),
    "a blank error": (
        [chunk({"content": "Hello"}, error={"message": "", "type": "", "param": "", "code": None}), B, U, DONE],
        SAME,
    ),
    "an error of success": ([chunk({"content": "Hello"}, error={"code": 0, "message": "success"}), B, U, DONE], SAME),
    "Spark's success": (
        [
            event({"code": 0, "message": "Success", "model": "gpt-4o", "choices": [{"delta": {"content": "Hello"}}]}),
            chunk({}, "stop", code=0, message="Success", usage=FULL),
        ],
        SAME,
    ),
    "a list of errors": ([b'[{"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}]'], NOTHING),
    "Amazon's exception": (
        [event({"modelStreamErrorException": {"message": "x", "originalStatusCode": 424}})],
        NOTHING,
    ),
    "a blank error alone": ([b'{"error": {"message": "", "type": "", "code": null}}'], NOTHING),
    "an error that is a text": ([b'{"error": "no"}'], NOTHING),
    "an error after the answer": ([A, B, U, event({"error": {"code": 502, "message": "x"}}), DONE], BROKEN),
    "a filter without a message": (
        [json.dumps({"model": "gpt-4o", "choices": [{"finish_reason": "content_filter"}], "usage": FULL}).encode()],
        Stored((190, 100), "0.001475", reason="content_filter", content=""),
    ),
    "usage cut off": ([A, B, U[:60]], Stored((17, 1), "0.0000525", estimated=True)),
}


@pytest.mark.sampled(1)
async def test_every_vendors_answer_ends_as_it_said(talk: Talk, subtests: pytest.Subtests) -> None:
    for name, (raw, expected) in ANSWERS.items():
        with subtests.test(name):
            message, _ = await talk.hear(Answer(raw=raw), expected)
            assert message.get("finish_reason", "error") == expected.reason


async def test_a_page_instead_of_an_answer_counts_nothing(talk: Talk) -> None:
    page = b"\n<!DOCTYPE html><title>Sign in</title>"
    for kind, raw in (
        ("text/html", [page]),
        ("text/event-stream", [page + b"\n<p>\n"]),
        ("text/html", [page, A, B, U]),
    ):
        await talk.hear(Answer(raw=raw, kind=kind), NOTHING)


async def test_an_answer_that_is_labelled_as_a_page_is_read(talk: Talk) -> None:
    for raw in ([A, B, U, DONE], whole(FULL), [A.replace(b"Hello", b"<p>Hello"), B, U, DONE]):
        talk.model.answer = Answer(raw=raw, kind="text/html; charset=UTF-8")
        message = await answer_to(talk.client, talk.caller, is_stream=talk.is_stream)
        await check(talk.database, Stored((190, 100), "0.001475", content=message["content"]))
        assert message["content"] in ("Hello", "<p>Hello")
