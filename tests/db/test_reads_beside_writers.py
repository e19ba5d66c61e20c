"""Reads while writers wait: a lock that another session holds stops writers, and no reader."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import httpx
import pytest

from app.db.database import Database
from tests.support import invariants, records
from tests.support.accounts import Caller
from tests.support.records import record

# Requests that wait for the lock: more than the pool has connections.
WAITING = 60
# Seconds for which the lock is held; the product waits longer before it gives up.
HELD_SECONDS = 2.0
# Seconds within which each reader must be answered.
LATEST_SECONDS = 1.0

LOCKS = {
    "the row of a month": "SELECT 1 FROM user_monthly_token_usage FOR UPDATE",
    "the row of a user": "SELECT 1 FROM users FOR UPDATE",
    "messages": "LOCK TABLE messages IN EXCLUSIVE MODE",
    "messages, also against reads": "LOCK TABLE messages IN ACCESS EXCLUSIVE MODE",
}


@asynccontextmanager
async def locked(database_url: str, lock: str) -> AsyncIterator[None]:
    """Hold a lock in a session of another program."""
    if database_url.startswith("sqlite"):
        connection = sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.close()
        return
    other = await asyncpg.connect(database_url)
    try:
        async with other.transaction():
            await other.execute(LOCKS[lock])
            yield
    finally:
        await other.close()


async def read_until(stop: asyncio.Event, client: httpx.AsyncClient, path: str, caller: Caller) -> None:
    """Read again and again; each answer must be good and in time."""
    while not stop.is_set():
        begun = time.monotonic()
        async with asyncio.timeout(LATEST_SECONDS):
            answer = await client.get(path, headers=caller.headers)
        assert answer.status_code == 200, f"{path}: {answer.text}"
        assert time.monotonic() - begun < LATEST_SECONDS, path
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(("kind", "lock"), [("sqlite", "the file"), *(("postgresql", name) for name in LOCKS)])
async def test_readers_are_answered_while_writers_wait(
    client: httpx.AsyncClient,
    database: Database,
    database_url: str,
    lock: str,
    ayu: Caller,
    bela: Caller,
    service: Caller,
) -> None:
    await records.store(client, service, [record(ayu)])
    reads = [("/health", ayu), ("/ready", ayu), ("/auth/me", ayu), ("/auth/me", bela), ("/conversations", bela)]
    stuck = lock.endswith("reads")
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group, locked(database_url, lock):
        writing = [
            group.create_task(records.post(client, service, [record(owner)]))
            for owner in (ayu, bela)
            for _ in range(WAITING // 2)
        ]
        days = "/auth/token-stats/monthly/2024/6/daily"
        waiting = [group.create_task(client.get(days, headers=ayu.headers)) for _ in range(WAITING * stuck)]
        await asyncio.sleep(0.1)
        for path, caller in reads[: len(reads) - stuck]:
            group.create_task(read_until(stop, client, path, caller))
        await asyncio.sleep(HELD_SECONDS)
        stop.set()
    assert {(await task).status_code for task in [*writing, *waiting]} == {200}
    sums = await invariants.check(database)
    assert sum(totals.message_count for totals in sums.values()) == WAITING + 1
