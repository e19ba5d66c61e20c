"""Databases that go away, fill up, lock, run out of connections or break off: clear errors, and exact afterwards."""

import asyncio
import contextlib
import logging
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

import httpx
import pytest
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.db import database as database_module
from app.db import migrations
from tests.support import outages, problems, shared_databases
from tests.support.invariants import Totals
from tests.support.openai_server import Answer, OpenAIServer
from tests.support.outages import DEADLINE_SECONDS, ONCE, Application, Trouble, application, served

__all__ = ["served"]

pytestmark = pytest.mark.long

LONG = "long " * 190_000
"""More than fits into what is left of a full disk."""


@pytest.fixture(scope="module")
def own_postgresql() -> Iterator[Trouble]:
    """A PostgreSQL server that nobody else uses, stopped as if its machine had lost power."""
    with tempfile.TemporaryDirectory() as name, outages.own_postgresql(Path(name) / "postgresql") as trouble:
        yield trouble


@pytest.fixture
def stopped(own_postgresql: Trouble) -> Trouble:
    """A PostgreSQL server with a database of the test's own."""
    url = outages.migrated(own_postgresql.url)
    return Trouble(url, own_postgresql.begin, own_postgresql.end, is_read=False)


_HOLD = "import sqlite3; c = sqlite3.connect({!r}); c.execute('BEGIN IMMEDIATE'); print('locked', flush=True); input()"


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trouble:
    """A SQLite database on which another process holds the write lock for longer than anyone waits."""
    path, holders = tmp_path / "app.db", list[subprocess.Popen[str]]()
    asyncio.run(migrations.upgrade(f"sqlite:///{path}"))
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_SECONDS", 0.05)

    def begin() -> None:
        command = [sys.executable, "-c", _HOLD.format(str(path))]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        holders.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"

    return Trouble(f"sqlite:///{path}", begin, lambda: _finish(holders.pop()))


def _finish(holder: subprocess.Popen[str]) -> None:
    holder.communicate("\n")


@pytest.fixture
def full() -> Iterator[Trouble]:
    """A SQLite database on a small disk of its own, which another program fills up."""
    with outages.small_disk("4m") as disk:
        asyncio.run(migrations.upgrade(f"sqlite:///{disk.path / 'app.db'}"))
        yield Trouble(f"sqlite:///{disk.path / 'app.db'}", disk.fill, disk.free)


@pytest.fixture
def full_postgresql() -> Iterator[Trouble]:
    """A PostgreSQL server on a small disk of its own, which another program fills up."""
    with outages.small_disk("120m") as disk, outages.own_postgresql(disk.path / "postgresql") as server:
        yield Trouble(_incompressible(outages.migrated(server.url)), disk.fill, disk.free)


@pytest.fixture
def without_log() -> Iterator[Trouble]:
    """The same, when there is no space for the write-ahead log either: PostgreSQL ends, and must be started again."""
    with outages.small_disk("120m") as disk, outages.own_postgresql(disk.path / "postgresql") as server:
        url = _incompressible(outages.migrated(server.url))

        def begin() -> None:
            disk.fill()
            asyncio.run(outages.break_log(url))

        def end() -> None:
            disk.free()
            server.end()

        yield Trouble(url, begin, end, is_read=False)


def _incompressible(url: str) -> str:
    asyncio.run(shared_databases.execute(url, "ALTER TABLE messages ALTER COLUMN content SET STORAGE EXTERNAL"))
    return url


@pytest.fixture
def read_only(own_postgresql: Trouble) -> Iterator[Trouble]:
    """A PostgreSQL that only reads, as after a switch to a standby, or at a provider whose disk is full."""

    def switch(on_or_off: str) -> None:
        statement = f"ALTER SYSTEM SET default_transaction_read_only = {on_or_off}"
        asyncio.run(shared_databases.execute(own_postgresql.url, statement, "SELECT pg_reload_conf()"))

    yield Trouble(outages.migrated(own_postgresql.url), lambda: switch("on"), lambda: switch("off"))
    switch("off")


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Trouble]:
    """A SQLite database whose log may hardly grow."""
    path, before = tmp_path / "app.db", resource.getrlimit(resource.RLIMIT_FSIZE)
    asyncio.run(migrations.upgrade(f"sqlite:///{path}"))

    def limit() -> None:
        # Each transaction is written to the log first, which is empty now, and cannot become as long as a question.
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield Trouble(f"sqlite:///{path}", limit, lift)
    lift()


@pytest.fixture(params=["stopped", "locked", "full", "limited", "full_postgresql", "without_log", "read_only"])
def trouble(request: pytest.FixtureRequest) -> Trouble:
    """Each of them."""
    found: Trouble = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def reasons() -> Iterator[list[str]]:
    """What the log says of refused requests."""
    lines: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("routers.http.problems")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


async def test_writers_without_a_database_get_errors_and_all_stays_exact(
    trouble: Trouble, model: OpenAIServer, reasons: list[str]
) -> None:
    async with application(trouble.url, model) as application_:
        assert (await application_.send("before")).status_code == 200
        await asyncio.to_thread(trouble.begin)
        problems.check(await application_.send("meanwhile", LONG), 503)
        problems.check(await application_.ask("meanwhile", LONG[:100_000]), 503)
        assert await application_.count() == (1 if trouble.is_read else -1)
        ready = (await application_.client.get("/ready")).status_code
        assert ready == (200 if trouble.is_read else 503)
        await asyncio.to_thread(trouble.end)
        assert await application_.count() == 1
        assert (await application_.send("meanwhile", LONG)).json() == {"recorded": 1, "duplicates": 0}
        assert (await application_.ask("meanwhile", LONG[:100_000])).status_code == 200
        assert await application_.months() == [Totals(30, 15, 45, Fraction(0), 3)]
        assert len(model.requests) == 1
    assert len(reasons) == (2 if trouble.is_read else 4), "one for each refusal"
    assert {reason.partition(": ")[0] for reason in reasons} == {"the database failed"}


async def test_an_unsettled_turn_is_settled_once_the_database_is_back(trouble: Trouble, model: OpenAIServer) -> None:
    model.answer = Answer(content=LONG, stall_after=0)
    async with application(trouble.url, model) as application_:
        asking = asyncio.create_task(application_.ask("once"))
        await asyncio.to_thread(model.wait_until, lambda: bool(model.requests))
        await asyncio.to_thread(trouble.begin)
        model.release()
        problems.check(await asking, 503)
        await asyncio.to_thread(trouble.end)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (answer := await application_.ask("once")).status_code == 409:
            assert time.monotonic() < deadline, "the turn is pending for ever"
            await asyncio.sleep(0.05)
        assert answer.json()["message"]["content"] == LONG
        assert await application_.months() == [Totals(10, 5, 15, Fraction(0), 1)]
        assert len(model.requests) == 1


@dataclass
class Load:
    """Writers, askers and readers who do not give up while the database comes and goes."""

    application: Application
    stopped: bool = False
    sent: int = 0
    stored: int = 0
    failed: int = 0
    """Questions whose answers were lost with the connection, as their callers were told."""
    refused: set[str] = field(default_factory=set)

    async def call(self, name: str, request: Callable[[str], Awaitable[httpx.Response]]) -> None:
        """Sends request after request, each until it is stored or known to have failed."""
        number = 0
        while not self.stopped:
            self.sent += 1
            number += 1
            if await self._insist(name, partial(request, f"{name} {number}")):
                self.stored += 1
            else:
                self.failed += 1

    async def _insist(self, name: str, request: Callable[[], Awaitable[httpx.Response]]) -> bool:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (answer := await request()).status_code not in (200, 502):
            problems.check(answer, answer.status_code)
            assert answer.status_code in (409, 503), answer.text
            assert time.monotonic() < deadline, f"still {answer.text}"
            self.refused.add(name)
            await asyncio.sleep(0.05)
        return answer.status_code == 200

    async def read(self, name: str) -> None:
        """Looks again and again, and demands to see what was stored, and nothing that was not sent."""
        while not self.stopped:
            stored = self.stored
            count = await self.application.count()
            if count < 0:
                self.refused.add(name)
            else:
                assert stored <= count <= self.sent
            await asyncio.sleep(0.02)

    async def more(self, answers: int) -> None:
        """Wait until a number of further requests is stored."""
        enough = self.stored + answers
        await outages.until(lambda: self.stored >= enough)


async def test_a_database_restart_under_load_heals_by_itself(stopped: Trouble, model: OpenAIServer) -> None:
    model.answer = Answer(delay=0.02)
    async with application(stopped.url, model) as application_:
        load = Load(application_)
        async with asyncio.TaskGroup() as group:
            names = [f"caller {number}" for number in range(9)]
            for name in names[:4]:
                group.create_task(load.call(name, application_.send))
            for name in names[4:7]:
                group.create_task(load.call(name, application_.ask))
            for name in names[7:]:
                group.create_task(load.read(name))
            for _ in range(2):
                await load.more(20)
                load.refused.clear()
                await asyncio.to_thread(stopped.begin)
                await outages.until(lambda: load.refused == set(names))
                await asyncio.to_thread(stopped.end)
            await load.more(20)
            load.stopped = True
        assert load.stored + load.failed == load.sent
        (sums,) = await application_.months()
        assert sums.message_count == await application_.count()
        assert sums.output_tokens == 5 * load.stored
        statuses = await application_.statuses()
        assert (statuses.pop("complete"), statuses.pop("failed", 0), statuses) == (load.stored, load.failed, {})


async def test_a_pool_run_dry_is_a_clear_error_and_passes(
    served: Application, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.database.engine.pool, "_timeout", 0.1)
    async with contextlib.AsyncExitStack() as held:
        with contextlib.suppress(PoolTimeout):
            while True:
                await held.enter_async_context(served.database.engine.connect())
        problems.check(await served.send("once"), 503)
        problems.check(await served.ask("once"), 503)
        reads_without_the_pool = kind == "sqlite"
        assert await served.count() == (0 if reads_without_the_pool else -1)
    assert (await served.send("once")).json() == {"recorded": 1, "duplicates": 0}
    assert await served.months() == [ONCE]
