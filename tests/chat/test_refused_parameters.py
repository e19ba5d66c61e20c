"""Parameters that the model's service refuses are left out from then on, except those that the caller asked for."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from app.errors import UpstreamError
from services.chat.openai_upstream import OpenAIUpstream
from tests.support.failing_service import PROMPTS, ask, error, failure, lines, refusal
from tests.support.openai_server import Answer, OpenAIServer

REFUSED: Mapping[str, tuple[int, Any]] = {
    "OpenAI": (400, {"error": {"message": "Unknown parameter: 'stream_options'.", "param": "stream_options"}}),
    "an older OpenAI": (400, error("Unrecognized request argument supplied: stream_options")),
    "FastAPI": (422, {"detail": [{"loc": ["body", "stream_options"], "msg": "extra", "type": "extra_forbidden"}]}),
    "a text": (400, b"stream_options is not supported"),
    "within": (400, error("body -> stream_options -> include_usage: Extra inputs are not permitted")),
    "in a 200": (200, {"error": {"message": "Unknown parameter: 'stream_options'."}}),
}


@pytest.mark.parametrize(("status", "body"), REFUSED.values(), ids=REFUSED)
async def test_a_parameter_that_is_refused_is_left_out_from_then_on(
    model: OpenAIServer, upstream: OpenAIUpstream, caplog: pytest.LogCaptureFixture, status: int, body: Any
) -> None:
    model.answer = lambda request: refusal(status, body) if "stream_options" in request else Answer()
    for _ in range(2):
        assert (await ask(upstream)).content == "Hello there, how are you?"
    assert ["stream_options" in request.body for request in model.requests] == [True, False, False]
    assert all(request.body["stream"] is True for request in model.requests)
    assert lines(caplog) == []


async def test_what_one_model_refuses_is_sent_to_others(model: OpenAIServer, upstream: OpenAIUpstream) -> None:
    unknown = error("Unknown parameter: 'stream_options'.")
    model.answer = lambda sent: (
        refusal(400, unknown) if sent["model"] == "old" and "stream_options" in sent else Answer()
    )
    for name in ("old", "new", "old", "new"):
        await upstream.ask(PROMPTS, name, lambda _piece: None)
    sent = [(request.body["model"], "stream_options" in request.body) for request in model.requests]
    assert sent == [("old", True), ("old", False), ("new", True), ("old", False), ("new", True)]


ASKED_FOR: Mapping[str, tuple[Any, str]] = {
    "temperature": (0.5, "Unsupported value: 'temperature' does not support 0.5 with this model."),
    "reasoning_effort": ("low", "Unknown parameter: 'reasoning_effort'."),
    "max_tokens": (77, "Unknown parameter: 'max_tokens'."),
}


@pytest.mark.parametrize("name", ASKED_FOR)
async def test_what_the_caller_asked_for_is_never_left_out(
    model: OpenAIServer, upstream: OpenAIUpstream, name: str
) -> None:
    value, words = ASKED_FOR[name]
    model.answer = lambda sent: refusal(400, error(words, param=name)) if name in sent else Answer()
    for _ in range(2):
        with pytest.raises(UpstreamError, match=re.escape(words)):
            await upstream.ask(PROMPTS, "gpt-4o", lambda _piece: None, None, {name: value})
    assert [request.body[name] for request in model.requests] == [value, value]


async def test_a_limit_that_is_too_large_keeps_its_name(model: OpenAIServer, upstream: OpenAIUpstream) -> None:
    words = "'max_tokens' or 'max_completion_tokens' is too large: 9000."
    model.answer = lambda sent: refusal(400, error(words)) if 9000 in sent.values() else Answer()
    with pytest.raises(UpstreamError, match="is too large"):
        await upstream.ask(PROMPTS, "m", None, None, {"max_tokens": 9000})
    await upstream.ask(PROMPTS, "m", None, None, {"max_tokens": 90})
    assert model.requests[-1].body["max_tokens"] == 90


async def test_every_refused_parameter_is_left_out(model: OpenAIServer, upstream: OpenAIUpstream) -> None:
    def answer(sent: dict[str, Any]) -> Answer:
        if "stream_options" in sent:
            return refusal(400, error("Unknown parameter: 'stream_options'."))
        if "max_tokens" in sent:
            return refusal(400, error("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."))
        return Answer()

    model.answer = answer
    for requests in (3, 1):
        model.requests.clear()
        await upstream.ask(PROMPTS, "o9", lambda _piece: None, None, {"max_tokens": 9})
        assert len(model.requests) == requests
        assert model.requests[-1].body["max_completion_tokens"] == 9


async def test_a_model_that_cannot_stream_is_asked_for_the_whole(model: OpenAIServer, upstream: OpenAIUpstream) -> None:
    unsupported = error("Unsupported value: 'stream' does not support true.", param="stream", code="unsupported_value")
    model.answer = lambda request: refusal(400, unsupported) if request.get("stream") else Answer()
    reply = await ask(upstream)
    assert (reply.content, reply.tokens) == ("Hello there, how are you?", (10, 5, 0, False))


async def test_what_is_refused_for_another_reason_is_not_remembered(
    model: OpenAIServer, upstream: OpenAIUpstream
) -> None:
    model.answer = refusal(400, error("Unknown parameter: 'stream_options'."))
    await failure(upstream)
    assert len(model.requests) == 2
    model.answer = Answer()
    await ask(upstream)
    assert "stream_options" in model.requests[-1].body
