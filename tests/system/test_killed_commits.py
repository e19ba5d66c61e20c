"""Processes that are killed in the middle of a commit: the caller repeats the request, and it counts once."""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path

import asyncpg
import httpx
import pytest

from app.db.database import Database
from tests.support import accounts, crash_driver, invariants, outages, problems, records, shared_databases
from tests.support.accounts import Caller
from tests.support.crash_driver import CrashingServer
from tests.support.invariants import Totals
from tests.support.openai_server import OpenAIServer
from tests.support.outages import DEADLINE_SECONDS, application

pytestmark = pytest.mark.long

COMMITTING = "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'COMMIT%'"
ROUNDS = 3


@pytest.fixture
def slow_url() -> Iterator[str]:
    """A database on a PostgreSQL whose commits take a tenth of a second, so that one can be met."""
    with tempfile.TemporaryDirectory() as name, outages.own_postgresql(Path(name) / "postgresql") as server:
        slow = ("ALTER SYSTEM SET commit_delay = 100000", "ALTER SYSTEM SET commit_siblings = 0")
        asyncio.run(shared_databases.execute(server.url, *slow, "SELECT pg_reload_conf()"))
        yield outages.migrated(server.url)


async def committing(url: str) -> int:
    """Wait for a backend of PostgreSQL that commits; return its process id."""
    observer = await asyncpg.connect(url)
    deadline = time.monotonic() + DEADLINE_SECONDS
    try:
        while (pid := await observer.fetchval(COMMITTING)) is None:
            assert time.monotonic() < deadline, "no backend commits"
        return int(pid)
    finally:
        await observer.close()


async def test_a_backend_killed_in_a_commit_loses_nothing(slow_url: str, model: OpenAIServer) -> None:
    async with application(slow_url, model) as application_:
        for number in range(ROUNDS):
            sending = [
                asyncio.create_task(application_.send(f"record {number}")),
                asyncio.create_task(application_.ask(f"question {number}")),
            ]
            os.kill(await committing(slow_url), signal.SIGKILL)
            for answer in await asyncio.gather(*sending):
                if answer.status_code != 200:
                    problems.check(answer, 503)
            await _again(application_.send, f"record {number}")
            await _again(application_.ask, f"question {number}")
        sums = await application_.months()
    assert sums == [Totals(20 * ROUNDS, 10 * ROUNDS, 30 * ROUNDS, Fraction(0), 2 * ROUNDS)]
    assert len(model.requests) == ROUNDS


async def _again(send: Callable[[str], Awaitable[httpx.Response]], key: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (answer := await send(key)).status_code in (409, 503):
        assert time.monotonic() < deadline, f"still {answer.text}"
        await asyncio.sleep(0.05)
    assert answer.status_code == 200, answer.text


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Database, Caller, Caller]]:
    database = Database.open(url)
    try:
        ayu, service = await accounts.add(database, "ayu"), await accounts.add(database, "service", role="service")
        yield database, ayu, service
    finally:
        await database.close()


async def test_a_server_killed_in_a_commit_counts_once(slow_url: str, model: OpenAIServer, tmp_path: Path) -> None:
    async with opened(slow_url) as (database, ayu, service):
        with crash_driver.crashing_server(slow_url, model.url, tmp_path / "log") as server:
            for _ in range(ROUNDS):
                record = records.record(ayu, created_at="2024-06-15T12:00:00Z")
                await _start(server)
                async with httpx.AsyncClient(base_url=server.address, trust_env=False) as client:
                    sending = asyncio.create_task(records.post(client, service, [record]))
                    await committing(slow_url)
                    server.kill()
                    with pytest.raises(httpx.TransportError):
                        await sending
                await _start(server)
                async with httpx.AsyncClient(base_url=server.address, trust_env=False) as client:
                    answer = await records.post(client, service, [record])
                assert sum(answer.json().values()) == 1, answer.text
                server.kill()
        sums = await invariants.check(database)
    assert [totals.message_count for totals in sums.values()] == [ROUNDS]


async def _start(server: CrashingServer) -> None:
    server.start()
    async with httpx.AsyncClient(base_url=server.address, trust_env=False) as client:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            try:
                if (await client.get("/ready")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)
    raise AssertionError("the server is not ready")
