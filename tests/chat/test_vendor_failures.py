"""Refusals in the words of many vendors, through `POST /chat`: what the caller sees, and how often is asked."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx
import pytest

from app.db.database import Database
from tests.support import invariants, openai_server
from tests.support.accounts import Caller
from tests.support.openai_server import Answer, OpenAIServer


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The application asks the tests' model."""
    return openai_server.settings(database_url, model)


class Refusal(NamedTuple):
    """What a service answers, and what its caller then sees."""

    status: int
    body: Any
    words: str = ""
    """Part of what the caller sees; empty: only that the service failed."""
    headers: Mapping[str, str] = {}
    pause: int | None = None
    """`Retry-After`, with status 429."""
    requests: int = 1


def openai(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}}


def google(code: int, status: str, message: str, **more: Any) -> list[dict[str, Any]]:
    return [{"error": {"code": code, "status": status, "message": message, **more}}]


GOOGLES_PAUSE = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s"}
GOOGLES_QUOTA = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaMetric": "x"}]}
PAUSES = {
    "Gemini": Refusal(
        429,
        google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", details=[GOOGLES_QUOTA, GOOGLES_PAUSE]),
        pause=34,
    ),
    "OpenAI, seconds": Refusal(429, openai("Rate limit reached for gpt-4o. Please try again in 20s."), pause=20),
    "OpenAI, minutes": Refusal(429, openai("Rate limit reached. Please try again in 1m12.5s."), pause=73),
    "Azure, words": Refusal(429, openai("You exceeded the token rate limit. Please retry after 26 seconds."), pause=26),
    "Azure, a header": Refusal(429, openai("busy"), headers={"x-ms-retry-after-ms": "21000"}, pause=21),
    "a field": Refusal(429, {"message": "You are being rate limited.", "retry_after": 12.5}, pause=13),
    "in an answer": Refusal(200, {"error": {"code": 429, "message": "Slow down, try again in 2 minutes."}}, pause=120),
}
QUOTAS = {
    "OpenAI": Refusal(429, openai("You exceeded your current quota.", code="insufficient_quota")),
    "Anthropic, credit": Refusal(400, openai("Your credit balance is too low to access the Anthropic API.")),
    "Anthropic, limits": Refusal(400, openai("You have reached your specified API usage limits.")),
    "DeepSeek": Refusal(402, openai("Insufficient Balance")),
    "DashScope": Refusal(400, openai("Access denied, your account is not in good standing.", code="Arrearage")),
    "Moonshot": Refusal(429, openai("Please check your plan.", type="exceeded_current_quota_error")),
    "Zhipu": Refusal(429, {"error": {"code": "1113", "message": "余额不足或无可用资源包,请充值。"}}),
    "xAI": Refusal(429, {"code": "exhausted", "error": "Your team has reached its monthly spending limit."}),
}
TOO_LONG = {
    "Anthropic": Refusal(400, openai("input length and `max_tokens` exceed context limit", type="x"), "context limit"),
    "Gemini": Refusal(
        400,
        google(400, "INVALID", "The input token count (12) exceeds the maximum number of tokens allowed (10)."),
        "exceeds the maximum number",
    ),
    "TGI": Refusal(422, {"error": "`inputs` must have less than 1024 tokens. Given: 1200"}, "less than 1024 tokens"),
    "Zhipu": Refusal(400, {"error": {"code": "1261", "message": "Prompt exceeds max length"}}, "exceeds max length"),
    "Copilot": Refusal(400, {"error": {"message": "prompt token count of 70 exceeds the limit of 64"}}, "exceeds the"),
    "llama.cpp": Refusal(500, {"error": {"message": "exceeds the available context size"}}, "available context size"),
    "a text": Refusal(400, "prompt is too long: 210000 tokens > 200000 maximum", "too long"),
}
MODELS = {
    "Anthropic": Refusal(404, {"error": {"type": "not_found_error", "message": "model: claude-9"}}, "claude-9"),
    "Gemini": Refusal(404, google(404, "NOT_FOUND", "models/foo is not found for API version v1"), "models/foo is not"),
    "Azure": Refusal(404, openai("The API deployment for this resource does not exist.", type="x"), "deployment"),
    "OpenRouter": Refusal(
        404, {"error": {"code": 404, "message": "No endpoints found for foo."}}, "No endpoints found"
    ),
    "Amazon": Refusal(400, {"message": "The provided model identifier is invalid."}, "identifier is invalid"),
    "Moonshot": Refusal(404, {"error": {"message": "Not found the model foo or Permission denied"}}, "the model foo"),
    "Zhipu": Refusal(400, {"error": {"code": "1211", "message": "模型不存在"}}, "模型不存在"),
}
FILTERS = {
    "OpenAI": Refusal(400, openai("Your prompt was flagged as potentially violating our usage policy."), "flagged"),
    "OpenRouter": Refusal(403, {"error": {"code": 403, "message": "Your input was flagged."}}, "flagged"),
    "xAI": Refusal(
        403, {"code": "The caller does not have permission", "error": "Content violates usage guidelines."}, "violates"
    ),
    "Zhipu": Refusal(400, {"error": {"code": "1301", "message": "可能包含不安全或敏感内容"}}, "敏感内容"),
    "Amazon": Refusal(400, {"message": "The request was blocked by a guardrail"}, "guardrail"),
    "DeepSeek": Refusal(400, {"error": {"message": "Content Exists Risk"}}, "Content Exists Risk"),
}
OPERATORS = {
    "a key": Refusal(401, {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}),
    "a key, Gemini": Refusal(400, google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")),
    "a permission": Refusal(403, openai("You are not allowed to sample from this model", code="permission_denied")),
    "a page": Refusal(502, b"<html><title>502 Bad Gateway</title></html>", requests=3),
    "nothing": Refusal(500, b"", requests=3),
}
REFUSALS = {
    f"{kind}: {name}": refusal
    for kind, refusals in {
        "a pause": PAUSES,
        "a quota": QUOTAS,
        "too long": TOO_LONG,
        "no such model": MODELS,
        "filtered": FILTERS,
        "the operator's": OPERATORS,
    }.items()
    for name, refusal in refusals.items()
}


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_every_vendors_refusal_is_understood(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, subtests: pytest.Subtests
) -> None:
    for name, refusal in REFUSALS.items():
        with subtests.test(name):
            model.requests.clear()
            raw = refusal.body if isinstance(refusal.body, bytes) else json.dumps(refusal.body).encode()
            kind = "text/html" if raw.startswith(b"<") else "application/json"
            model.answer = Answer(status=refusal.status, raw=[raw], headers=refusal.headers, kind=kind)
            answer = await client.post("/chat", headers=ayu.headers, json={"message": "Hi", "stream": False})
            detail = answer.json()["detail"]
            assert answer.status_code == (429 if refusal.pause else 502), detail
            assert answer.headers.get("Retry-After") == (str(refusal.pause) if refusal.pause else None)
            assert ("refused the request" in detail) is bool(refusal.words), detail
            assert refusal.words in detail
            assert len(model.requests) == refusal.requests
    assert await invariants.check(database) == {}
