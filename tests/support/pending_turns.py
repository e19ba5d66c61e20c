"""Turns that are pending: begun, watched, taken for dead, and what is stored of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC
from typing import Any

import httpx
import pytest
from sqlalchemy import Row, text

from app.db.database import Database
from services.chat import leases, recovery, turns
from services.chat.leases import Observer
from services.chat.runner import TurnRunner
from services.chat.turns import Question, Turn
from tests.support import invariants, openai_server
from tests.support.accounts import Caller
from tests.support.openai_server import Answer, OpenAIServer, usage

ESTIMATE = ("failed", "", 8, 0)
REAL = ("complete", "Hello there, how are you?", 1000, 500)
"""Status, content, input and output."""

REAL_ANSWER = Answer(usage=usage(1000, 500, 100), stall_after=0)
"""What the model says once it is released."""

MACHINE = leases._machine()
UNUSED_PID = 2**22 + 1  # above Linux's largest process id


@pytest.fixture
def model(model: OpenAIServer) -> OpenAIServer:
    """The model's service, which says nothing until it is released."""
    model.answer = REAL_ANSWER
    return model


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The application asks the tests' model."""
    return openai_server.settings(database_url, model)


def observer(runner: TurnRunner) -> Observer:
    """Return an observer that may look as often as it likes."""
    return Observer(runner.lease, pause_seconds=0)


async def answers(database: Database) -> list[Row[*tuple[Any, ...]]]:
    """Return the messages of all turns."""
    async with database.reads() as session:
        statement = "SELECT * FROM messages WHERE role = 'assistant' AND turn IS NOT NULL ORDER BY id"
        return list(await session.execute(text(statement)))


async def stored(database: Database) -> list[tuple[Any, ...]]:
    """Return the answers, after a check that they are counted right."""
    await invariants.check(database)
    columns = ("status", "content", "input_tokens", "output_tokens")
    return [tuple(getattr(row, name) for name in columns) for row in await answers(database)]


@contextlib.asynccontextmanager
async def asking(
    client: httpx.AsyncClient, caller: Caller, model: OpenAIServer, **fields: Any
) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    """Ask, and leave the turn pending until the model is released."""
    body = {"message": "Hi", "stream": False, **fields}
    task = asyncio.create_task(client.post("/chat", headers=caller.headers, json=body))
    await asyncio.to_thread(model.wait_until, lambda: bool(model.requests))
    try:
        yield task
    finally:
        model.release()
        await asyncio.wait([task])


async def begin(database: Database, caller: Caller, name: str) -> Turn:
    """Begin a turn that no process answers."""
    question = Question(caller.id, "Hi", "gpt-4o")
    begun = await database.transaction(lambda session: turns.begin(session, question, name, UTC))
    assert isinstance(begun, Turn)
    return begun


async def take(runner: TurnRunner) -> None:
    """Look, from another process, until it takes the owner for dead."""
    looking = observer(runner)
    settled = [await recovery.settle_orphans(runner, looking) for _ in range(leases.STILL_LOOKS + 1)]
    assert settled == [0] * leases.STILL_LOOKS + [1]
