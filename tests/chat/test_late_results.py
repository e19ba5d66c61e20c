"""A result that comes after an estimate replaces the estimate, and never the reverse."""

import asyncio
import contextlib
import functools
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.db.database import Database
from services.chat import turns
from services.chat.leases import PendingTurn
from services.chat.runner import TurnRunner
from services.chat.tokenizer import TokenCounts
from services.usage import token_usage
from tests.support import accounts, crash_driver, invariants, pending_turns, problems, records
from tests.support.accounts import Caller
from tests.support.openai_server import Answer, OpenAIServer
from tests.support.pending_turns import ESTIMATE, REAL, app_settings, model

__all__ = ["app_settings", "model"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_late_result_replaces_the_estimate(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, other: TurnRunner, stream: bool
) -> None:
    async with pending_turns.asking(client, ayu, model, stream=stream) as task:
        await pending_turns.take(other)
        assert await pending_turns.stored(database) == [ESTIMATE]
        model.release()
        answer = await task
    assert answer.status_code == 200, answer.text
    assert ("event: done" in answer.text) == stream
    assert '"total_tokens":1500' in answer.text
    assert await pending_turns.stored(database) == [REAL]
    (row,) = await pending_turns.answers(database)
    assert not row.usage_estimated
    [sums] = (await invariants.check(database)).values()
    assert (sums.total_tokens, sums.message_count) == (1500, 1)


async def test_an_estimate_never_replaces_a_result(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, owner: TurnRunner
) -> None:
    async with pending_turns.asking(client, ayu, model):
        (row,) = await pending_turns.answers(database)
    outcome = turns.Outcome("failed", "", "gpt-4o", TokenCounts(8, 0, estimated=True))
    for is_owner in (False, True):
        work = lambda session, is_owner=is_owner: owner.settle(  # noqa: E731
            session, PendingTurn(row.id, row.turn, ayu.id), outcome, is_owner=is_owner
        )
        await database.transaction(work)
    assert await pending_turns.stored(database) == [REAL]


async def test_a_late_refusal_removes_the_estimate(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, other: TurnRunner
) -> None:
    model.answer = Answer(status=400, stall_after=0)
    async with pending_turns.asking(client, ayu, model) as task:
        await pending_turns.take(other)
        assert await pending_turns.stored(database) == [ESTIMATE]
        model.release()
        problems.check(await task, 502)
    assert await pending_turns.stored(database) == [("failed", "", None, None)]
    assert await invariants.check(database) == {}


async def test_a_late_result_does_not_bring_erased_content_back(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, other: TurnRunner
) -> None:
    async with pending_turns.asking(client, ayu, model) as task:
        await pending_turns.take(other)
        (row,) = await pending_turns.answers(database)
        assert (await client.delete(f"/conversations/{row.conversation_id}", headers=ayu.headers)).status_code == 204
        model.release()
        assert (await task).json()["message"]["content"] is None
    assert await pending_turns.stored(database) == [("complete", None, 1000, 500)]


@pytest.mark.any_database
async def test_a_result_replaces_an_estimate_amid_traffic(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, service: Caller, other: TurnRunner
) -> None:
    async def report() -> None:
        for _ in range(20):
            await records.store(client, service, [records.record(ayu)])

    async with pending_turns.asking(client, ayu, model) as task:
        await pending_turns.take(other)
        reporting = asyncio.gather(*(report() for _ in range(4)))
        await asyncio.sleep(0.05)
        model.release()
        assert (await task).status_code == 200
        while not reporting.done():
            await invariants.check(database)
            await asyncio.sleep(0)
        await reporting
    [sums] = (await invariants.check(database)).values()
    assert (sums.total_tokens, sums.message_count) == (1500 + 80 * 15, 81)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn_that_is_not_stored_as_complete_is_no_answer(
    client: httpx.AsyncClient,
    database: Database,
    ayu: Caller,
    model: OpenAIServer,
    other: TurnRunner,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    async def keep(*_arguments: Any) -> None:
        return None

    monkeypatch.setattr(token_usage, "_estimate", keep)
    async with pending_turns.asking(client, ayu, model, stream=stream) as task:
        await pending_turns.take(other)
        model.release()
        answer = await task
    if stream:
        assert "event: error" in answer.text
        assert "event: done" not in answer.text
    else:
        problems.check(answer, 502)


@pytest.mark.long
async def test_the_answer_of_a_server_that_was_suspended_counts(
    database: Database, database_url: str, model: OpenAIServer, tmp_path: Path
) -> None:
    caller = await accounts.add(database, "ayu")
    with (
        crash_driver.crashing_server(database_url, model.url, tmp_path / "one.log") as suspended,
        crash_driver.crashing_server(database_url, model.url, tmp_path / "two.log") as awake,
    ):
        for server in (suspended, awake):
            server.start()
            await crash_driver.until(functools.partial(is_ready, server.address), "the server is ready")
        async with httpx.AsyncClient(base_url=suspended.address, trust_env=False, timeout=60) as client:
            async with pending_turns.asking(client, caller, model) as task:
                await suspend(suspended.pid or 0, database)
                try:
                    await crash_driver.until(lambda: is_estimated(database), "the turn is settled with an estimate")
                    assert await pending_turns.stored(database) == [ESTIMATE]
                finally:
                    os.kill(suspended.pid or 0, signal.SIGCONT)
                model.release()
                answer = await task
            assert answer.json()["message"]["total_tokens"] == 1500
        assert await pending_turns.stored(database) == [REAL]


async def suspend(pid: int, database: Database) -> None:
    """Stops a process at a moment at which it does not hold SQLite's lock, which nothing could take from it."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        if database.engine.dialect.name != "sqlite" or await asyncio.to_thread(
            is_writable, str(database.engine.url.database)
        ):
            return
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.01)


def is_writable(path: str) -> bool:
    with contextlib.closing(sqlite3.connect(path, timeout=0.5)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
    return True


async def is_ready(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            return (await client.get(f"{address}/ready")).status_code == 200
    return False


async def is_estimated(database: Database) -> bool:
    return [row.status for row in await pending_turns.answers(database)] == ["failed"]
