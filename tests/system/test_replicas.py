"""Streaming replicas: usage read from one, and the failover to one. All servers are real."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from app.db import engines, migrations
from app.db.urls import Target
from app.settings import Settings
from main import create_app
from models import User
from tests.support import accounts, commands, invariants, problems, raw_sql, records, replicas
from tests.support.accounts import SECRET_KEY, Caller
from tests.support.outages import DEADLINE_SECONDS
from tests.support.poolers import opened
from tests.support.replicas import Pair

pytestmark = pytest.mark.long

DAY = "2024-06-15"
REPORTS = (
    f"/auth/token-stats/daily?from={DAY}&to={DAY}",
    f"/auth/token-stats/models?from={DAY}&to={DAY}",
    "/auth/token-stats/monthly/2024/6/daily",
    f"/auth/token-stats/daily/{DAY}/conversations",
    "/admin/usage?month=2024-06",
    f"/admin/token-stats/daily?from={DAY}&to={DAY}",
)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """A primary and its replica."""
    with replicas.running() as pair:
        asyncio.run(migrations.upgrade(pair.url(pair.primary)))
        yield pair


@dataclass(frozen=True)
class Served:
    """The application, and an admin who uses it."""

    client: httpx.AsyncClient
    admin: Caller

    async def count(self, path: str, caller: Caller | None = None) -> int:
        """The messages that a route shows."""
        answer = await self.client.get(path, headers=(caller or self.admin).headers)
        assert answer.status_code == 200, answer.text
        (listed,) = [value for value in answer.json().values() if isinstance(value, list)]
        return sum(item["message_count"] for item in listed)

    async def exact_count(self) -> int:
        answer = await self.client.get("/auth/me", headers=self.admin.headers)
        return sum(month["message_count"] for month in answer.json()["token_stats"]["monthly_stats"])

    async def send(self, count: int = 1) -> None:
        made = [records.record(self.admin, created_at=f"{DAY}T12:00:00Z") for _ in range(count)]
        await records.store(self.client, self.admin, made)


@contextlib.asynccontextmanager
async def serving(**settings: str) -> AsyncIterator[Served]:
    app = create_app(Settings.load(secret_key=SECRET_KEY, **settings))
    async with app.router.lifespan_context(app):
        admin = await accounts.add(app.state.foundation.database, "root", role="admin")
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield Served(client, admin)


@pytest.fixture
async def served(pair: Pair) -> AsyncIterator[Served]:
    """The application, which reads reports from the replica."""
    await asyncio.to_thread(raw_sql.run, pair.url(pair.primary), "TRUNCATE users CASCADE")
    urls = {"database_url": pair.url(pair.primary), "database_read_url": pair.url(pair.replica)}
    async with serving(**urls) as served:
        yield served


async def test_reports_are_read_from_the_replica(pair: Pair, served: Served) -> None:
    await served.send()
    await asyncio.to_thread(pair.catch_up)
    await asyncio.to_thread(pair.pause)
    try:
        await served.send(2)
        assert [await served.count(path) for path in REPORTS] == [1] * len(REPORTS)
        assert await served.exact_count() == 3, "/auth/me is exact"
    finally:
        await asyncio.to_thread(pair.resume)
    await asyncio.to_thread(pair.catch_up)
    assert [await served.count(path) for path in REPORTS] == [3] * len(REPORTS)


async def test_who_may_read_is_decided_by_the_primary(pair: Pair, served: Served) -> None:
    old = await accounts.register(served.client, "old")
    await asyncio.to_thread(pair.catch_up)
    await asyncio.to_thread(pair.pause)
    try:
        new = await accounts.register(served.client, "new")
        for user in (old, new):
            assert [await served.count(path, user) for path in REPORTS[:4]] == [0] * 4
            await served.client.post(f"/admin/users/{user.id}/deactivate", headers=served.admin.headers)
            for path in REPORTS[:4]:
                problems.check(await served.client.get(path, headers=user.headers), 401)
    finally:
        await asyncio.to_thread(pair.resume)


async def test_while_the_replica_is_down_only_reports_fail(pair: Pair, served: Served) -> None:
    await served.send()
    await asyncio.to_thread(pair.control, pair.replica, "-m", "immediate", "stop")
    try:
        for path in REPORTS:
            problems.check(await served.client.get(path, headers=served.admin.headers), 503)
        await served.send()
        assert await served.exact_count() == 2
        assert (await served.client.get("/ready")).status_code == 200
    finally:
        await asyncio.to_thread(pair.start_replica)
    await asyncio.to_thread(pair.catch_up)
    assert [await served.count(path) for path in REPORTS] == [2] * len(REPORTS)


@pytest.mark.parametrize("name", ["DATABASE_DIRECT_URL", "DATABASE_READ_URL"])
def test_the_url_of_another_database_is_refused(pair: Pair, name: str, tmp_path: Path) -> None:
    for statement in ("DROP DATABASE IF EXISTS other", "CREATE DATABASE other"):
        raw_sql.run(pair.url(pair.primary), statement)
    settings = {"DATABASE_URL": pair.url(pair.primary), name: pair.url(pair.primary, name="other")}
    ended = commands.run(["main.py", "list-keys"], tmp_path, **settings)
    assert (ended.code, ended.out) == (2, "")
    assert f"{name} names another database than DATABASE_URL" in ended.err


async def test_a_replica_of_another_database_is_never_read(pair: Pair, served: Served) -> None:
    await served.send()
    raw = pair.url(pair.primary)
    for statement in ("DROP DATABASE IF EXISTS other", "CREATE DATABASE other TEMPLATE template0"):
        await asyncio.to_thread(raw_sql.run, raw, statement)
    await migrations.upgrade(pair.url(pair.primary, name="other"))
    primary = Target(raw)
    async with (
        opened(primary) as database,
        opened(Target(pair.url(pair.primary, name="other"), replica_of=raw)) as other,
    ):
        assert await database.scalar(select(func.count(User.id))) == 1
        with pytest.raises(DBAPIError, match="another database"):
            await other.scalar(select(func.count(User.id)))


async def test_a_failover_loses_no_acknowledged_record() -> None:
    with replicas.running() as pair:
        await asyncio.to_thread(wait_for_the_replica, pair)
        both = pair.url(pair.primary, pair.replica)
        await migrations.upgrade(both)
        async with serving(database_url=both) as served:
            sent = [records.record(served.admin, created_at=f"{DAY}T12:00:00Z") for _ in range(60)]
            for number, record in enumerate(sent):
                if number == 20:
                    await asyncio.to_thread(fail_over, pair)
                await send_until_acknowledged(served, record)
            assert await served.exact_count() == len(sent)
        async with opened(both) as database:
            await invariants.check(database)


async def send_until_acknowledged(served: Served, record: dict[str, Any]) -> None:
    """Send the same record again, as a backend does whose request failed."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (answer := await records.post(served.client, served.admin, [record])).status_code != 200:
        problems.check(answer, 503)
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


def wait_for_the_replica(pair: Pair) -> None:
    """From now on a commit is acknowledged when the replica has it."""
    for statement in ("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"):
        raw_sql.run(pair.url(pair.primary), statement)


def fail_over(pair: Pair) -> None:
    """The primary loses its power, and the replica takes over."""
    pair.control(pair.primary, "-m", "immediate", "stop")
    pair.control(pair.replica, "promote")


async def test_a_server_that_never_answers_is_passed_over(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "CONNECT_TIMEOUT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, and nothing answers
        port = silent.getsockname()[1]
        url = f"postgresql://postgres@/postgres?host=127.0.0.1:{port}&host={pair.replica}&host={pair.primary}"
        async with opened(url) as database:
            for _ in range(3):
                async with asyncio.timeout(DEADLINE_SECONDS), database.engine.connect() as connection:
                    await connection.exec_driver_sql("CREATE TEMPORARY TABLE written (n int) ON COMMIT DROP")
                    await connection.invalidate()
        assert accepted(silent) == 1, "then the server that worked is tried first"


def accepted(server: socket.socket) -> int:
    """How many connections a server has received."""
    server.setblocking(False)
    number = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            number += 1
    return number
