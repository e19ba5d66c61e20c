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
