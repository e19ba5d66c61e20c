"""SIGTERM under load: streams go on for a while, then they are broken off and told so; all is settled, exit code 0."""

import asyncio
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import text

from app.db.database import Database
from tests.support import accounts, commands, invariants, programs, records
from tests.support.accounts import SECRET_KEY, Caller
from tests.support.openai_server import Answer, OpenAIServer
from tests.support.records import record

STREAMS = 12


def answer(request: dict[str, Any]) -> Answer:
    """What is asked to be slow ends in time, what is asked to stall never ends."""
    stalls = "stall" in request["messages"][-1]["content"]
    return Answer(content="one two three four", chunk_delay=0.05, stall_after=2 if stalls else None)


async def stream(client: httpx.AsyncClient, caller: Caller, message: str, begun: asyncio.Event) -> tuple[str, str]:
    """The name of the last event and all of the content; the stream must end as streams do."""
    content, event = "", ""
    async with client.stream("POST", "/chat", headers=caller.headers, json={"message": message}) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            if event == "delta" and line.startswith("data: "):
                content += json.loads(line.removeprefix("data: "))["content"]
                begun.set()
    return event, content


async def report(client: httpx.AsyncClient, service: Caller, owner: Caller) -> int:
    """Sends records until nobody takes any more; says how many were acknowledged."""
    acknowledged = 0
    while True:
        try:
            await records.store(client, service, [record(owner)])
        except httpx.TransportError:
            return acknowledged
        acknowledged += 1


async def statuses(database: Database) -> list[str]:
    """Of all answers of the model, however they ended."""
    async with database.reads() as session:
        statement = "SELECT status FROM messages WHERE turn IS NOT NULL ORDER BY status"
        return list(await session.scalars(text(statement)))


@pytest.mark.any_database
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.long
async def test_a_stopping_server_settles_every_stream_and_ends_well(
    database: Database, database_url: str, model: OpenAIServer, tmp_path: Path, workers: int
) -> None:
    model.answer = answer
    caller, service = await accounts.add(database, "ayu"), await accounts.add(database, "service", "service")
    settings = {"DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY, "WORKERS": str(workers)}
    settings |= {"LLM_BASE_URL": model.url, "LLM_MODEL": "gpt-4o", "SHUTDOWN_SECONDS": "1", "LOG_LEVEL": "WARNING"}
    main = programs.install(tmp_path / "project") / "main.py"
    with programs.started(main, tmp_path, commands.free_port(), settings) as (address, process):
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60, limits=limits) as client:
            ends, acknowledged = await stop_under_load(client, process, caller, service)
        ended = await asyncio.to_thread(programs.finish, process)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err, ended.err
    assert ends == [("done", "one two three four")] * STREAMS + [("error", "one two")] * STREAMS
    assert await statuses(database) == ["complete"] * STREAMS + ["interrupted"] * STREAMS
    sums = await invariants.check(database)
    assert sum(totals.message_count for totals in sums.values()) >= 2 * STREAMS + acknowledged > 2 * STREAMS


async def stop_under_load(
    client: httpx.AsyncClient, process: subprocess.Popen[str], caller: Caller, service: Caller
) -> tuple[list[tuple[str, str]], int]:
    messages = [f"slow {i}" for i in range(STREAMS)] + [f"stall {i}" for i in range(STREAMS)]
    begun = [asyncio.Event() for _ in messages]
    streams = [stream(client, caller, *one) for one in zip(messages, begun, strict=True)]
    reporting = asyncio.create_task(report(client, service, caller))
    reading = asyncio.gather(*streams)
    await asyncio.gather(*(event.wait() for event in begun))
    process.send_signal(signal.SIGTERM)
    return await reading, await reporting


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_so_does_one_that_is_stopped_at_the_keyboard(database_url: str, tmp_path: Path) -> None:
    main = programs.install(tmp_path / "project") / "main.py"
    settings = {"DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY}
    with programs.started(main, tmp_path, commands.free_port(), settings) as (_, process):
        process.send_signal(signal.SIGINT)
        ended = await asyncio.to_thread(programs.finish, process)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err, ended.err


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_workers_do_not_outlive_the_process_that_watches_over_them(database_url: str, tmp_path: Path) -> None:
    main = programs.install(tmp_path / "project") / "main.py"
    settings = {"DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY, "WORKERS": "2"}
    with programs.started(main, tmp_path, commands.free_port(), settings) as (_, process):
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
        process.kill()
        process.wait()
        _, alive = await asyncio.to_thread(psutil.wait_procs, family, timeout=programs.DEADLINE_SECONDS)
        for left in alive:
            left.kill()
        process.communicate()
    assert alive == []
