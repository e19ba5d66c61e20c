"""Answers of the model's service as bytes, and what is made of them."""

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from app.errors import UpstreamError
from services.chat.openai_upstream import OpenAIUpstream
from services.chat.tokenizer import Prompt
from services.chat.upstream import Reply
from services.usage.pricing import Priced, PriceList
from tests.support import openai_server

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


def choices(value: Any) -> bytes:
    return event({"id": "c1", "object": "chat.completion.chunk", "model": "gpt-4o"} | value)
