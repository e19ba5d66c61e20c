"""A model's service that fails, and what comes of it."""

import json
import logging
from typing import Any

import pytest

from app.errors import UpstreamError
from services.chat.openai_upstream import OpenAIUpstream
from services.chat.tokenizer import Prompt
from services.chat.upstream import Reply
from tests.support.openai_server import Answer

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
