"""Bytes of whole and streamed answers, and what must be stored of them."""

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
from sqlalchemy import Row, text

from app.db.database import Database
from tests.support import invariants
from tests.support.accounts import Caller
from tests.support.chunks import DONE, chunk, usage
from tests.support.openai_server import Answer, OpenAIServer

QUESTION = "What is a tide pool, in one sentence?"


def stream(report: Any, *, name: str = "gpt-4o", reason: str = "stop") -> list[bytes]:
    return [
        chunk({"content": "Hello"}, name=name),
        chunk({}, reason, name=name),
        chunk({}, name=name, choices=[], usage=report),
        DONE,
    ]


def whole(report: Any, *, name: str = "gpt-4o", reason: str = "stop", **message: Any) -> list[bytes]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello", **message}, "finish_reason": reason}
    return [json.dumps({"id": "c1", "model": name, "choices": [choice], "usage": report}).encode()]


A, B = chunk({"content": "Hello"}), chunk({}, "stop")
U = chunk({}, choices=[], usage=usage(190, 100, total_tokens=290))


@dataclass(frozen=True)
class Stored:
    """What must be stored."""

    tokens: tuple[int, int] | None
    cost: str | None
    status: str = "complete"
    reason: str | None = "stop"
    content: str = "Hello"
    estimated: bool | None = False
    source: str = ""


async def answer_to(client: httpx.AsyncClient, caller: Caller, *, is_stream: bool, **more: Any) -> dict[str, Any]:
    """Ask, and return the message, or the problem."""
    body = {"message": QUESTION, "stream": is_stream, **more}
    answer = await client.post("/chat", headers=caller.headers, json=body)
    assert not is_stream or answer.status_code == 200, answer.text
    last: dict[str, Any] = json.loads(answer.text.strip().rpartition("data: ")[2]) if is_stream else answer.json()
    message = last.get("message")
    return message if isinstance(message, dict) else last


async def stored(database: Database) -> Row[*tuple[Any, ...]]:
    """The last answer, after a check of what is counted."""
    await invariants.check(database)
    async with database.reads() as session:
        statement = "SELECT * FROM messages WHERE role = 'assistant' ORDER BY id DESC LIMIT 1"
        return (await session.execute(text(statement))).one()


async def check(database: Database, expected: Stored) -> Row[*tuple[Any, ...]]:
    row = await stored(database)
    found = (row.status, row.content, row.finish_reason)
    assert found == (expected.status, expected.content, expected.reason)
    tokens = None if row.input_tokens is None else (row.input_tokens, row.output_tokens)
    assert (tokens, row.usage_estimated) == (expected.tokens, expected.estimated)
    cost = row.cost
    if isinstance(cost, int):  # SQLite's, of 1e-10 dollars
        cost = Decimal(cost).scaleb(-10)
    assert cost == (None if expected.cost is None else Decimal(expected.cost))
    return row


@dataclass(frozen=True)
class Talk:
    """A caller and a service, whose answers are streamed to the caller or not."""

    client: httpx.AsyncClient
    database: Database
    caller: Caller
    model: OpenAIServer
    is_stream: bool

    async def hear(self, answer: Answer, expected: Stored, **more: Any) -> tuple[dict[str, Any], Row[*tuple[Any, ...]]]:
        """Ask for this answer; return the message that the caller gets, and what is stored."""
        self.model.answer = answer
        message = await answer_to(self.client, self.caller, is_stream=self.is_stream, **more)
        return message, await check(self.database, expected)

    async def report(
        self, report: Any, expected: Stored, *, name: str = "gpt-4o", **more: Any
    ) -> tuple[dict[str, Any], Row[*tuple[Any, ...]]]:
        """Ask for a plain answer with this report of usage."""
        raw = stream(report, name=name) if self.is_stream else whole(report, name=name)
        return await self.hear(Answer(raw=raw, kind=None if self.is_stream else "application/json"), expected, **more)
