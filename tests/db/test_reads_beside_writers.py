"""Reads while writers wait: a lock that another session holds stops writers, and no reader."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest import mock

import asyncpg
import httpx
import pytest

from app.db.database import Database
from services.chat.runner import TurnRunner
from tests.support import invariants, records
from tests.support.accounts import Caller
from tests.support.records import record

# Requests that wait for the lock: more than the pool has connections.
WAITING = 60
# The answers to each reader before the lock is released. A reader that waited for it would get 503, or no answer.
ANSWERS = 3
# A limit for all readers, however slow the machine.
SECONDS = 60

DAYS = "/auth/token-stats/monthly/2024/6/daily"
TALKS = "/auth/token-stats/daily/2024-06-15/conversations"
LOCKS = {
    "the row of a month": "SELECT 1 FROM user_monthly_token_usage FOR UPDATE",
    "the row of a user": "SELECT 1 FROM users FOR UPDATE",
    "messages": "LOCK TABLE messages IN EXCLUSIVE MODE",
    "messages, also against reads": "LOCK TABLE messages IN ACCESS EXCLUSIVE MODE",
    "months, also against reads": "LOCK TABLE user_monthly_token_usage IN ACCESS EXCLUSIVE MODE",
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


async def read(client: httpx.AsyncClient, path: str, caller: Caller) -> None:
    """Read again and again; each answer must be good."""
    for _ in range(ANSWERS):
        answer = await client.get(path, headers=caller.headers)
        assert answer.status_code == 200, f"{path}: {answer.text}"
        await asyncio.sleep(0.1)


@pytest.mark.long
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
    stuck = [path for path in ("/auth/me", "/conversations", DAYS, TALKS) if not reads_beside(lock, path)]
    async with asyncio.TaskGroup() as group, locked(database_url, lock):
        waiting = [
            group.create_task(records.post(client, service, [record(owner)]))
            for owner in (ayu, bela)
            for _ in range(WAITING // 2)
        ]
        waiting += [
            group.create_task(client.get(path, headers=ayu.headers)) for path in stuck * (WAITING // len(stuck or [0]))
        ]
        await asyncio.sleep(0.1)
        paths = {"/health", "/ready", "/auth/me", "/conversations", DAYS, TALKS}.difference(stuck)
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*(read(client, path, caller) for path in paths for caller in (ayu, bela)))
        assert not any(task.done() for task in waiting)
    assert {(await task).status_code for task in waiting} == {200}
    sums = await invariants.check(database)
    assert sum(totals.message_count for totals in sums.values()) == WAITING + 1


def reads_beside(lock: str, path: str) -> bool:
    """Return whether a read can be answered while this lock is held; those of sessions wait for each other's slots."""
    if lock == "messages, also against reads":
        return path == "/auth/me"
    return not lock.endswith("reads") or path != "/auth/me"


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_the_lease_of_a_process_is_renewed_while_writers_wait(
    client: httpx.AsyncClient, database_url: str, owner: TurnRunner, ayu: Caller, service: Caller
) -> None:
    async with asyncio.TaskGroup() as group, locked(database_url, "messages"):
        for _ in range(WAITING):
            group.create_task(records.post(client, service, [record(ayu)]))
        await asyncio.sleep(0.1)
        owner.unsettled.add(mock.Mock())
        async with asyncio.timeout(SECONDS):
            await owner.renew_lease()
        owner.unsettled.clear()
