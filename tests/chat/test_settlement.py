"""Turns that cannot be settled as they should are settled in simpler ways, and hold up no others."""

import asyncio
from typing import Any

import httpx
import pytest

from app.db.database import Database
from services.chat import recovery
from services.chat.runner import TurnRunner
from services.usage import rollups
from services.usage.pricing import PriceList
from tests.support import invariants, pending_turns, problems
from tests.support.accounts import Caller
from tests.support.openai_server import OpenAIServer
from tests.support.pending_turns import ESTIMATE, MACHINE, REAL, UNUSED_PID, app_settings, model

__all__ = ["app_settings", "model"]


@pytest.fixture
def no_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The price list is out of order."""

    def fail(*_arguments: Any) -> Any:
        raise RuntimeError("the price list is broken")

    monkeypatch.setattr(PriceList, "price", fail)


@pytest.fixture
def no_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be counted."""

    async def fail(_session: Any, used: Any) -> None:
        if used:
            raise RuntimeError("the rollups are broken")

    monkeypatch.setattr(rollups, "add", fail)


async def failures(client: httpx.AsyncClient) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    (line,) = [line for line in lines if line.startswith("foundation_settlement_failures_total ")]
    return float(line.split()[1])


async def until_settled(database: Database) -> list[tuple[Any, ...]]:
    for _ in range(200):
        rows = [
            (row.status, row.content, row.input_tokens, row.output_tokens)
            for row in await pending_turns.answers(database)
        ]
        if rows and "pending" not in {status for status, *_ in rows}:
            break
        await asyncio.sleep(0.05)
    return rows


@pytest.mark.parametrize(
    ("broken", "ended"),
    [("no_prices", (REAL[1], 1000, 500)), ("no_counting", ("", None, None))],
)
@pytest.mark.sampled(1)
async def test_an_answer_that_cannot_be_settled_ends_as_failed(
    client: httpx.AsyncClient,
    database: Database,
    ayu: Caller,
    model: OpenAIServer,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    broken: str,
    ended: tuple[Any, ...],
) -> None:
    before = await failures(client)
    request.getfixturevalue(broken)
    async with pending_turns.asking(client, ayu, model) as task:
        model.release()
        problems.check(await task, 500)
    assert await until_settled(database) == [("failed", *ended)]
    (row,) = await pending_turns.answers(database)
    assert f"message {row.id} could not be settled as it should" in caplog.text
    assert await failures(client) > before
    await invariants.check(database)


@pytest.mark.parametrize(("broken", "ended"), [("no_prices", (8, 0)), ("no_counting", (None, None))])
async def test_an_orphan_that_resists_does_not_hold_up_others(
    database: Database,
    ayu: Caller,
    other: TurnRunner,
    request: pytest.FixtureRequest,
    broken: str,
    ended: tuple[Any, ...],
) -> None:
    request.getfixturevalue(broken)
    for number in range(3):
        await pending_turns.begin(database, ayu, f"{'0' * 32}:{MACHINE}:{UNUSED_PID}:1/{number}")
    assert await recovery.settle_orphans(other, pending_turns.observer(other)) == 3
    rows = await pending_turns.stored(database)
    assert [(status, content) for status, content, *_ in rows] == [("failed", "")] * 3
    for _, _, *tokens in rows:
        assert tokens == [pytest.approx(ended[0], abs=8), ended[1]] if ended[0] else tokens == list(ended)


async def test_a_turn_that_fails_unexpectedly_is_settled_at_once(
    client: httpx.AsyncClient, database: Database, ayu: Caller, owner: TurnRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_arguments: Any) -> Any:
        raise RuntimeError("nobody expects this")

    monkeypatch.setattr(owner.upstream, "ask", fail)
    problems.check(await client.post("/chat", headers=ayu.headers, json={"message": "Hi", "stream": False}), 502)
    assert await pending_turns.stored(database) == [ESTIMATE]
