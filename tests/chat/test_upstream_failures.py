"""Why a model failed: what the log says, what the caller is told, and whether the service is asked again."""

import email.utils
import json
import logging
import re
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
from services.chat.redaction import HIDDEN, MAX_WORDS, Redaction, secrets_of
from services.chat.tokenizer import Prompt
from services.chat.upstream import Reply
from services.chat.upstream_failures import read
from tests.support.openai_server import KEY, Answer, OpenAIServer

SECRET_MESSAGE = "My daughter Wilhelmina has the PIN 90817 for her piggy bank, what can I do?"
PROMPTS: list[Prompt] = [
    {"role": "system", "content": "Be kind to Bartholomew"},
    {"role": "user", "content": SECRET_MESSAGE},
]
DONE = b"data: [DONE]\n\n"


async def ask(upstream: OpenAIUpstream, *, stream: bool = True) -> Reply:
    return await upstream.ask(PROMPTS, "gpt-4o", (lambda _piece: None) if stream else None)


async def failure(upstream: OpenAIUpstream, *, stream: bool = True) -> UpstreamError:
    with pytest.raises(UpstreamError) as failed:
        await ask(upstream, stream=stream)
    return failed.value


def refusal(status: int, body: Any, **headers: str) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status=status, raw=[raw], headers=headers, kind="application/json")


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}}


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


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


LEAKY = [
    f"Incorrect API key provided: {KEY}. Find it at https://x.example/keys?token={KEY}",
    f"Authorization: Bearer {KEY}",
    f"bad header {{'authorization': 'Bearer {KEY}', 'x-api-key': '{KEY[:15]}'}}",
    f"wrong key {KEY[:12]}***{KEY[-4:]}",
    "wrong key sk-proj-abcdefghijkl and xai-12345678 and AIzaSyDUMMYDUMMY and eyJhbGciOiJIUzI1NiJ9.eyJh.sig",
    f"could not parse {json.dumps(PROMPTS)}",
    f"could not parse {json.dumps(json.dumps(PROMPTS))}",
    f"flagged: '{SECRET_MESSAGE[:40]}…' and 'Wilhelmina' and \"{SECRET_MESSAGE.upper()}\"",
    f"flagged: {'-'.join(SECRET_MESSAGE.split())}",
    "x" * 100_000 + KEY,
]


@pytest.mark.parametrize("words", LEAKY)
@pytest.mark.parametrize("kind", ["status", "200", "stream"])
async def test_no_one_sees_a_key_or_a_users_message_in_a_failure(
    model: OpenAIServer, upstream: OpenAIUpstream, caplog: pytest.LogCaptureFixture, words: str, kind: str
) -> None:
    body = error(words, param="messages", code=f"bad {KEY}")
    if kind == "status":
        model.answer = refusal(400, body)
    elif kind == "200":
        model.answer = Answer(raw=[json.dumps(body).encode()])
    else:
        model.answer = Answer(raw=[f"data: {json.dumps(body)}\n\n".encode(), DONE])
    failed = await failure(upstream)
    [line] = lines(caplog)
    for text in (line, failed.detail, str(failed)):
        assert len(text) < 600
        assert "\n" not in text
        for secret in (KEY, KEY[:12], "abcdefghijkl", "12345678", "AIzaSy", "eyJ", "Wilhelmina", "WILHELMINA", "90817"):
            assert secret not in text
        assert "Bartholomew" not in text
        assert "piggy bank" not in text.lower()


def test_what_is_known_of_a_base_url_is_hidden_as_well() -> None:
    url = "https://operator:p4ssw0rd@models.example/v1?code=function-key-123"
    cleaned = Redaction(secrets_of("", url), []).clean(f"cannot call {url}, p4ssw0rd, function-key-123")
    assert "p4ssw0rd" not in cleaned
    assert "function-key-123" not in cleaned
    assert "models.example" in cleaned


def test_words_about_a_very_long_conversation_are_hidden() -> None:
    assert Redaction([], ["x" * 500_000]).clean("the words") == HIDDEN


@given(st.text(max_size=2000), st.lists(st.text(max_size=60), max_size=3), st.text(min_size=3, max_size=30))
def test_cleaned_words_are_one_bounded_line_without_the_secret(words: str, prompts: list[str], secret: str) -> None:
    cleaned = Redaction([secret], prompts).clean(f"{words} {secret} {words}")
    assert len(cleaned) <= MAX_WORDS
    assert cleaned.isprintable()
    assert secret not in cleaned.replace(HIDDEN, "\0") or not secret.isprintable() or secret in "…"


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
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("body", "may_retry"), IN_200.values(), ids=IN_200)
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
