"""The server killed again and again under load: nothing acknowledged is lost, nothing is counted twice.

`CRASHES=1000 pytest tests/system/test_crash.py` kills it 1,000 times for each kind of database.
"""

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from sqlalchemy import Row, text

from app.db.database import Database
from tests.support import accounts, crash_driver, invariants, openai_server
from tests.support.crash_driver import Callers, CrashingServer, Figures
from tests.support.openai_server import Answer

pytestmark = pytest.mark.long

logger = logging.getLogger(__name__)

CRASHES = int(os.environ.get("CRASHES", "10" if os.environ.get("LONG") else "5"))
SEED = 20241231
MOST_ANSWERS = 25
"""So many requests are answered in one life of the server, at the most, before the moment comes to kill it."""

CHECKS = 20
"""How often the data is checked on the way, besides the end."""


async def is_ready(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            return (await client.get(f"{address}/ready")).status_code == 200
    return False


async def ready(server: CrashingServer) -> None:
    await crash_driver.until(lambda: is_ready(server.address), "the server is ready")


async def is_settled(database: Database) -> bool:
    async with database.reads() as session:
        pending = await session.execute(text("SELECT count(*) FROM messages WHERE status = 'pending'"))
        return bool(pending.scalar_one() == 0)


async def messages(database: Database) -> list[Row[*tuple[Any, ...]]]:
    async with database.reads() as session:
        return list(await session.execute(text("SELECT * FROM messages ORDER BY id")))


async def check_messages(database: Database, callers: Callers) -> None:
    """Demands that the messages are those that were sent: the acknowledged ones all, the others at most once."""
    rows = await messages(database)
    records = {row.idempotency_key: row for row in rows if (row.idempotency_key or "").startswith("record:")}
    chats = [row for row in rows if row.conversation_id is not None]
    assert len(records) + len(chats) == len(rows)

    assert records.keys() == {f"record:{id_}" for id_ in callers.records}, "acknowledged and stored are not the same"
    for id_, record in callers.records.items():
        row = records[f"record:{id_}"]
        assert (row.user_id, Figures(row.input_tokens, row.output_tokens)) == (record["user_id"], Figures.of(id_))

    by_id = {row.id: row for row in chats}
    for message_id, message in callers.answers.items():
        row = by_id[message_id]
        assert (row.content, row.status) == (message["content"], "complete")
        assert (row.input_tokens, row.output_tokens) == (message["input_tokens"], message["output_tokens"])

    turns: dict[str, list[Row[*tuple[Any, ...]]]] = {}
    for row in chats:
        turns.setdefault(row.conversation_id, []).append(row)
    asked = [check_turn(callers, *turn) for turn in turns.values()]
    assert len(asked) == len(set(asked)), "a question was stored twice"


def check_turn(callers: Callers, asked: Row[*tuple[Any, ...]], answer: Row[*tuple[Any, ...]]) -> str:
    assert (asked.role, answer.role) == ("user", "assistant")
    assert asked.user_id == answer.user_id == callers.questions[asked.content]
    if answer.status == "complete":
        assert Figures(answer.input_tokens, answer.output_tokens) == Figures.of(asked.content)
        assert answer.content == f"Re: {asked.content}"
    else:
        assert (answer.status, answer.content) == ("failed", "")
        assert (answer.output_tokens, bool(answer.usage_estimated)) == (0, True)
        assert answer.input_tokens > 0
    return str(asked.content)


async def crash(server: CrashingServer, callers: Callers, random: Random) -> None:
    """One life of the server: mostly until some moment under load, sometimes not even until it is ready."""
    server.start()
    if random.random() < 0.9:
        enough = callers.acknowledged + random.randrange(MOST_ANSWERS)
        await crash_driver.until(lambda: acknowledged(callers, enough), "callers get answers")
    await asyncio.sleep(random.uniform(0, 0.1))
    server.kill()


async def acknowledged(callers: Callers, enough: int) -> bool:
    return callers.acknowledged >= enough


async def test_a_server_killed_again_and_again_loses_and_doubles_nothing(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    random, log, began = Random(SEED), tmp_path / "server.log", time.monotonic()
    users = [await accounts.add(database, f"user {number}") for number in range(3)]
    service = await accounts.add(database, "service", role="service")
    with openai_server.running() as model, crash_driver.crashing_server(database_url, model.url, log) as server:
        model.answer = crash_driver.answer
        callers = Callers(server.address, users, service)
        async with asyncio.TaskGroup() as group:
            group.create_task(callers.run())
            for number in range(CRASHES):
                await crash(server, callers, random)
                if number % (CRASHES // CHECKS + 1) == 0:
                    await invariants.check(database)
            server.start()
            await ready(server)
            callers.stopped = True
        await crash_driver.until(lambda: is_settled(database), "no message is pending")
        await invariants.check(database)
        await check_messages(database, callers)
    assert "Traceback" not in log.read_text(), log.read_text()[-5000:]
    logger.info("%d crashes in %.0f s; %s", CRASHES, time.monotonic() - began, callers)


async def test_a_turn_of_a_killed_server_is_settled_at_the_next_start(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    caller, log = await accounts.add(database, "ayu"), tmp_path / "server.log"
    with openai_server.running() as model, crash_driver.crashing_server(database_url, model.url, log) as server:
        model.answer = Answer(stall_after=0)
        server.start()
        await ready(server)
        async with httpx.AsyncClient(base_url=server.address, trust_env=False, timeout=60) as client:
            asking = asyncio.create_task(client.post("/chat", headers=caller.headers, json={"message": "Hi"}))
            await asyncio.to_thread(model.wait_until, lambda: bool(model.requests))
            server.kill_without_burial()
            with pytest.raises(httpx.TransportError):
                await asking
        assert not await is_settled(database)
        server.start()
        await crash_driver.until(lambda: is_settled(database), "no message is pending")
    (_, row) = await messages(database)
    assert (row.status, row.content, row.input_tokens, row.output_tokens) == ("failed", "", 8, 0)
    assert [sums.message_count for sums in (await invariants.check(database)).values()] == [1]
