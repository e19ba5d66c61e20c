"""Texts that a tokenizer refuses are estimated all the same, and hold nothing up: not the loop, not other messages."""

import asyncio
import time
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.db.database import Database
from services.chat import tokenizer
from services.chat.tokenizer import Prompt
from tests.support import invariants, openai_server, raw_sql
from tests.support.accounts import Caller
from tests.support.openai_server import Answer, OpenAIServer

MANY_CHARACTERS = "hello " * 200_000
"""More characters than the tokenizer takes at once."""

MANY_TOKENS = "\U00013000" * 99_900
"""More tokens than the tokenizer gives at once: four a character."""


@pytest.fixture
def model(model: OpenAIServer) -> OpenAIServer:
    """The model's service, which reports no usage."""
    model.answer = Answer(usage=None)
    return model


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The application asks the tests' model."""
    return openai_server.settings(database_url, model)


async def ask(client: httpx.AsyncClient, caller: Caller, message: str) -> dict[str, Any]:
    answer = await client.post("/chat", headers=caller.headers, json={"message": message, "stream": False})
    assert answer.status_code == 200, answer.text[:1000]
    return dict(answer.json()["message"])


async def test_an_answer_of_any_length_is_estimated(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    model.answer = Answer(content=MANY_CHARACTERS, usage=None)
    message = await ask(client, ayu, "Hi")
    assert (message["status"], message["input_tokens"]) == ("complete", 8)
    assert 200_000 <= message["output_tokens"] <= 201_000
    [sums] = (await invariants.check(database)).values()
    assert sums.total_tokens == message["total_tokens"]


async def test_a_question_of_any_characters_is_estimated(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    message = await ask(client, ayu, MANY_TOKENS)
    assert (message["status"], message["input_tokens"]) == ("complete", 4 * 99_900 + 7)
    await invariants.check(database)


@pytest.mark.parametrize("text", ["", "a", "\ud800", "\x00", " " * 1_500_000, "a" * 1_500_000, "\udfff" * 300_000])
async def test_every_text_has_a_count(text: str) -> None:
    counts = await tokenizer.estimate([Prompt(role="user", content=text)], text)
    assert counts.output_tokens <= 4 * len(text)
    assert (counts.output_tokens > 0) == bool(text)
    assert counts.input_tokens == counts.output_tokens + 7


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=300))
def test_pieces_have_about_as_many_tokens_as_the_whole(words: list[str]) -> None:
    text = " ".join(words)
    whole = tokenizer.count(text)
    pieces = [match[0] for match in tokenizer.in_pieces(text, 100)]
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 100
    assert abs(sum(map(tokenizer.count, pieces)) - whole) <= 2 * len(pieces)


async def test_estimating_holds_up_nothing_else() -> None:
    """The tokenizer holds Python's global lock; a piece of its work must not take long."""
    await tokenizer.estimate([], "loads its tables")
    text = "".join(chr(0x10000 + i * 7919 % 0x20000) for i in range(400_000))  # among the slowest there are
    longest, working = 0.0, asyncio.create_task(tokenizer.estimate([], text))
    began = before = time.perf_counter()
    while not working.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest, before = max(longest, now - before), now
    assert longest < max(0.05, (before - began) / 4)


async def test_a_tokenizer_that_fails_leaves_an_estimate(
    client: httpx.AsyncClient, database: Database, ayu: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_text: str) -> int:
        raise RuntimeError("the tokenizer is out of order")

    monkeypatch.setattr(tokenizer, "count", fail)
    message = await ask(client, ayu, "Hi " * 100)
    assert message["status"] == "complete"
    assert message["input_tokens"] == pytest.approx(300 / 4, abs=10)
    await invariants.check(database)


def pending(url: str, number: int, question: str, owner: int) -> None:
    """A turn of a process that died, as an earlier version stored it."""
    at = "2024-06-15 12:00:00.000000" if url.startswith("sqlite") else "2024-06-15 12:00:00+00"
    conversation = f"'c{number}'"
    raw_sql.run(
        url,
        "INSERT INTO conversations (id, user_id, title, model_type, created_at)"
        f" VALUES ({conversation}, {owner}, 'x', 'Standard', '{at}')",
        "INSERT INTO messages (conversation_id, user_id, role, content, created_at, status)"
        f" VALUES ({conversation}, {owner}, 'user', '{question}', '{at}', 'complete')",
        "INSERT INTO messages (conversation_id, user_id, role, model, created_at, status, turn)"
        f" VALUES ({conversation}, {owner}, 'assistant', 'gpt-4o', '{at}', 'pending', 'gone/1/1.00/{number}')",
    )


@pytest.fixture
async def left_behind(database: Database, database_url: str, ayu: Caller) -> None:
    """Three turns whose process died; a text of the second is more than the tokenizer takes at once."""
    for number, question in enumerate(("Hi", MANY_TOKENS, "Hi")):
        await asyncio.to_thread(pending, database_url, number, question, ayu.id)


async def test_no_text_keeps_messages_from_being_settled_at_the_start(
    left_behind: None, client: httpx.AsyncClient, database: Database, database_url: str
) -> None:
    statement = "SELECT status, input_tokens FROM messages WHERE role = 'assistant' ORDER BY id"
    for _ in range(200):
        rows = await asyncio.to_thread(raw_sql.run, database_url, statement)
        if all(status != "pending" for status, _ in rows):
            break
        await asyncio.sleep(0.05)
    assert rows == [("failed", 8), ("failed", 4 * 99_900 + 7), ("failed", 8)]
    await invariants.check(database)
