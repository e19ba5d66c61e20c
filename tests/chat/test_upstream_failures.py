"""Why a model failed: what the log says, what the caller is told, and whether the service is asked again."""

import email.utils
import json
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import clock
from app.errors import UpstreamBusy, UpstreamError
from services.chat.openai_upstream import OpenAIUpstream, Timeouts
from services.chat.upstream_failures import read
from tests.support.failing_service import DONE, ask, error, failure, lines, refusal
from tests.support.openai_server import KEY, Answer, OpenAIServer

HELPFUL: Mapping[str, tuple[int, Any, str]] = {
    "too long": (
        400,
        error("This model's maximum context length is 128000 tokens.", code="context_length_exceeded"),
        "maximum context length is 128000 tokens",
    ),
    "too long, vLLM": (
        400,
        {"object": "error", "message": "The prompt is too long: 9000 tokens", "type": "BadRequestError", "code": 400},
        "too long: 9000 tokens",
    ),
    "too long, llama.cpp": (
        400,
        {"error": {"code": 400, "message": "exceeds the available context size", "type": "exceed_context_size_error"}},
        "exceeds the available context size",
    ),
    "no such model": (404, error("The model `gpt-9` does not exist.", code="model_not_found"), "`gpt-9` does not"),
    "no such model, Ollama": (404, {"error": "model 'llama9' not found"}, "model 'llama9' not found"),
    "a filter": (
        400,
        {
            "error": {
                "message": "The response was filtered due to the prompt triggering content management policy.",
                "code": "content_filter",
                "innererror": {"code": "ResponsibleAIPolicyViolation"},
            }
        },
        "content management policy",
    ),
    "a parameter": (
        400,
        error("Unsupported value: 'temperature' does not support 0.", param="temperature", code="unsupported_value"),
        "'temperature' does not support",
    ),
    "a parameter, FastAPI": (
        422,
        {"detail": [{"loc": ["body", "top_k"], "msg": "extra fields not permitted", "type": "value_error.extra"}]},
        "body.top_k: extra fields",
    ),
    "Gemini's list": (
        400,
        [{"error": {"code": 400, "message": "Invalid value at 'contents'", "status": "INVALID_ARGUMENT"}}],
        "Invalid value at 'contents'",
    ),
}


@pytest.mark.parametrize(("status", "body", "words"), HELPFUL.values(), ids=HELPFUL)
async def test_what_the_caller_can_change_reaches_the_caller(
    model: OpenAIServer,
    upstream: OpenAIUpstream,
    caplog: pytest.LogCaptureFixture,
    status: int,
    body: Any,
    words: str,
) -> None:
    model.answer = refusal(status, body)
    failed = await failure(upstream)
    assert (failed.status, failed.accepted, failed.partial) == (502, False, None)
    assert words in failed.detail
    [line] = lines(caplog)
    assert words in line
    assert f"status {status}" in line
    assert len(model.requests) == 1


NEUTRAL: Mapping[str, tuple[int, Any]] = {
    "a wrong key": (401, error("Incorrect API key provided: sk-abc.", code="invalid_api_key")),
    "a wrong key, Gemini": (400, [{"error": {"code": 400, "message": "API key not valid. Pass a valid API key."}}]),
    "forbidden": (403, error("Your project does not have access to the model.", code="model_not_found")),
    "no money": (402, error("Insufficient Balance")),
    "a quota": (429, error("You exceeded your current quota.", code="insufficient_quota")),
    "a traceback": (400, error("Invalid value: Traceback (most recent call last)", param="x")),
    "a page": (404, b"<html><title>Not found</title><script>model not found</script><p>nginx/1.2</p></html>"),
    "nothing": (400, b""),
    "garbage": (400, b"\xff\xfe{"),
}


@pytest.mark.parametrize(("status", "body"), NEUTRAL.values(), ids=NEUTRAL)
async def test_what_is_the_operators_is_told_to_the_log_alone(
    model: OpenAIServer, upstream: OpenAIUpstream, caplog: pytest.LogCaptureFixture, status: int, body: Any
) -> None:
    model.answer = refusal(status, body)
    failed = await failure(upstream)
    assert failed.detail == f"The model's service answered with status {status}."
    assert (failed.status, failed.accepted) == (502, False)
    [line] = lines(caplog)
    assert f"status {status}" in line
    assert len(model.requests) == 1


async def test_the_log_has_the_code_the_type_and_the_words(
    model: OpenAIServer, upstream: OpenAIUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    model.answer = refusal(401, error("No such\n\x1b[31muser\u202e\u2028here", code="invalid_api_key"))
    await failure(upstream)
    [line] = lines(caplog)
    expected = "status 401, code invalid_api_key, type invalid_request_error: No such [31muser here"
    assert line == f"model gpt-4o at 127.0.0.1 failed: {expected}"


KEYS = st.sampled_from(
    ["error", "errors", "detail", "message", "code", "type", "param", "loc", "msg", "metadata", "raw", "base_resp"]
)
ERRORS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


@given(ERRORS)
def test_no_form_of_an_error_raises(value: Any) -> None:
    found = read(400, value, {"retry-after": "soon", "retry-after-ms": "x"})
    assert isinstance(found.is_transient, bool)
    assert isinstance(found.helps_the_caller, bool)


IN_200: Mapping[str, tuple[Any, bool]] = {
    "an internal error": ({"error": {"message": "Internal server error", "type": "internal_error"}}, True),
    "an overload": ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, True),
    "a rate limit by its code": ({"error": {"code": 429, "message": "Slow down"}}, True),
    "a provider's error": (
        {"error": {"code": 502, "message": "Provider returned error", "metadata": {"raw": "upstream said no"}}},
        True,
    ),
    "a text": ({"error": "server is busy"}, True),
    "a bad request": ({"error": {"code": 400, "message": "Bad thing"}}, False),
    "a quota": ({"error": {"code": "insufficient_quota", "message": "too many requests"}}, False),
    "MiniMax": ({"base_resp": {"status_code": 1004, "status_msg": "login fail"}}, False),
    "a gateway": ({"success": False, "code": 500, "msg": "no channel"}, True),
    "vLLM": ({"object": "error", "message": "boom", "code": 400}, False),
    "DashScope": ({"code": "InvalidParameter", "message": "no", "request_id": "1"}, False),
    "Baidu": ({"error_code": 336501, "error_msg": "Rate limit exceeded"}, True),
    "FastAPI": ({"detail": "Not Found"}, False),
    "iFlow's status": ({"status": "439", "msg": "Your API Token has expired.", "body": None}, False),
    "a status in words": ({"status": "error", "message": "Backend exploded"}, False),
    "Azure's gateway": ({"statusCode": 429, "message": "Rate limit is exceeded."}, True),
    "no known form": ({"Response": {"Error": {"Code": "AuthFailure", "Message": "bad"}, "RequestId": "x"}}, False),
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("body", "may_retry"), IN_200.values(), ids=IN_200)
@pytest.mark.sampled(8)
async def test_an_error_instead_of_an_answer_counts_nothing(
    model: OpenAIServer,
    upstream: OpenAIUpstream,
    caplog: pytest.LogCaptureFixture,
    body: Any,
    may_retry: bool,
    stream: bool,
) -> None:
    model.answer = Answer(
        raw=[f"data: {json.dumps(body)}\n\n".encode(), DONE] if stream else [json.dumps(body).encode()]
    )
    failed = await failure(upstream, stream=stream)
    assert (failed.status, failed.accepted, failed.partial) == (502, False, None)
    assert len(model.requests) == (3 if may_retry else 1)
    [line] = lines(caplog)
    assert "an error in its answer" in line


@pytest.mark.parametrize("text", ["upstream connect error: reset by peer", '"Unauthorized"', "null"])
async def test_plain_text_instead_of_an_answer_counts_nothing(
    model: OpenAIServer, upstream: OpenAIUpstream, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    for stream in (True, False):
        model.answer = Answer(raw=[text.encode()], kind="text/plain")
        failed = await failure(upstream, stream=stream)
        assert (failed.status, failed.accepted, failed.partial) == (502, False, None)
    assert all(line.endswith(text) for line in lines(caplog))


@pytest.mark.parametrize("begin", [b"d", b"dat", b"data", b"\xef", b": pin", b"{", b""])
async def test_a_stream_that_is_cut_at_once_may_be_billed(
    model: OpenAIServer, upstream: OpenAIUpstream, begin: bytes
) -> None:
    model.answer = Answer(raw=[begin], end="cut")
    assert (await failure(upstream)).accepted


async def test_an_answer_in_an_unknown_form_may_be_billed(model: OpenAIServer, upstream: OpenAIUpstream) -> None:
    model.answer = Answer(raw=[b'{"output": "Hello", "done": true}'])
    assert (await failure(upstream, stream=False)).accepted


async def test_an_error_of_a_moment_is_forgotten(
    model: OpenAIServer, upstream: OpenAIUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    busy = Answer(raw=[b'data: {"error":{"message":"Internal server error","type":"internal_error"}}\n\n', DONE])
    answers = iter([busy, refusal(503, b"", **{"Retry-After": "0"}), Answer()])
    model.answer = lambda _request: next(answers)
    assert (await ask(upstream)).content == "Hello there, how are you?"
    assert (len(model.requests), lines(caplog)) == (3, [])


async def test_a_short_pause_is_waited_for(model: OpenAIServer, upstream: OpenAIUpstream) -> None:
    answers = iter([refusal(429, error("Rate limit reached"), **{"Retry-After": "1"}), Answer()])
    model.answer = lambda _request: next(answers)
    started = time.monotonic()
    assert (await ask(upstream)).tokens is not None
    assert 1 <= time.monotonic() - started < 5
    assert len(model.requests) == 2


def in_seconds(seconds: int) -> Callable[[], str]:
    return lambda: email.utils.format_datetime(clock.now() + timedelta(seconds=seconds), usegmt=True)


PAUSES: Mapping[str, tuple[dict[str, str | Callable[[], str]], int | None, int]] = {
    "a minute": ({"Retry-After": "60"}, 60, 1),
    "a fraction": ({"Retry-After": "59.2"}, 60, 1),
    "milliseconds": ({"retry-after-ms": "59001", "Retry-After": "1"}, 60, 1),
    "a date": ({"Retry-After": in_seconds(3600)}, 3600, 1),
    "for ever": ({"Retry-After": "999999999"}, 86_400, 1),
    "none": ({}, None, 3),
    "words": ({"Retry-After": "soon"}, None, 3),
    "negative": ({"Retry-After": "-5"}, None, 3),
    "a date that is gone": ({"Retry-After": in_seconds(-60)}, 1, 3),
    "at once": ({"Retry-After": "0"}, 1, 3),
}


@pytest.mark.parametrize(("headers", "seconds", "requests"), PAUSES.values(), ids=PAUSES)
async def test_a_pause_that_is_too_long_is_passed_on(
    model: OpenAIServer,
    upstream: OpenAIUpstream,
    headers: dict[str, str | Callable[[], str]],
    seconds: int | None,
    requests: int,
) -> None:
    now = {name: value if isinstance(value, str) else value() for name, value in headers.items()}
    model.answer = refusal(429, error("Rate limit reached", type="requests"), **now)
    failed = await failure(upstream)
    assert len(model.requests) == requests
    assert failed.accepted is False
    if seconds is None:
        assert (type(failed), failed.status) == (UpstreamError, 502)
    else:
        assert isinstance(failed, UpstreamBusy)
        assert failed.status == 429
        assert seconds - 100 < int(failed.headers["Retry-After"]) <= seconds


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 415, 422, 501, 504])
async def test_a_refusal_is_not_asked_again(model: OpenAIServer, upstream: OpenAIUpstream, status: int) -> None:
    model.answer = refusal(status, error("no"))
    await failure(upstream)
    assert len(model.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
async def test_a_busy_service_is_asked_three_times(
    model: OpenAIServer, upstream: OpenAIUpstream, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    model.answer = refusal(status, error("later"))
    await failure(upstream)
    assert (len(model.requests), len(lines(caplog))) == (3, 1)


async def test_a_connection_that_fails_says_why(caplog: pytest.LogCaptureFixture) -> None:
    for url in ("http://127.0.0.1:9/v1", "ftp://127.0.0.1/v1", "nonsense"):
        caplog.clear()
        upstream = OpenAIUpstream(url, KEY, "", Timeouts())
        failed = await failure(upstream)
        await upstream.close()
        assert (failed.status, failed.accepted) == (502, False)
        [line] = lines(caplog)
        assert "failed: " in line
        assert "Connect" in line or "Url" in line


@pytest.mark.parametrize(
    ("suffix", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("?api-version=2024-06-01", "/v1/chat/completions?api-version=2024-06-01"),
    ],
)
async def test_a_base_url_may_end_in_any_of_the_usual_ways(model: OpenAIServer, suffix: str, path: str) -> None:
    upstream = OpenAIUpstream(f"{model.url}{suffix}", "", "", Timeouts())
    await ask(upstream)
    await upstream.close()
    [request] = model.requests
    assert request.path == path
    assert "authorization" not in request.headers


@pytest.mark.parametrize("key", ["line\nbreak-of-a-key", "sch\u00fcssel-\U0001f511-key", " spaces "])
async def test_a_key_that_cannot_be_sent_is_a_failure_and_not_shown(
    model: OpenAIServer, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    upstream = OpenAIUpstream(model.url, key, "", Timeouts())
    model.answer = refusal(401, error(f"wrong: {key}"))
    failed = await failure(upstream)
    await upstream.close()
    assert (failed.status, failed.accepted) == (502, False)
    [line] = lines(caplog)
    assert "break-of-a-key" not in line
    assert "-key" not in line
