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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from pathlib import Path

import asyncpg
import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.db import database as database_module
from app.db import migrations
from app.db.database import Database, Session
from services.usage import token_usage
from services.usage.token_usage import Entry, Usage
from tests.support import accounts, outages, problems, shared_databases
from tests.support.accounts import Caller
from tests.support.invariants import Totals
from tests.support.openai_server import Answer, OpenAIServer
from tests.support.outages import DEADLINE_SECONDS, Application, Trouble, application

pytestmark = pytest.mark.long

JUNE = datetime(2024, 6, 15, 12, tzinfo=UTC)
ONCE = Totals(10, 5, 15, Fraction(0), 1)
LONG = "long " * 190_000
"""More than fits into what is left of a full disk."""

CUT_OFF_WHO_WAITS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND datname = current_database()
"""
only_postgresql = pytest.mark.parametrize("kind", ["postgresql"])


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


@pytest.fixture
async def served(database_url: str, model: OpenAIServer) -> AsyncIterator[Application]:
    """The application on a database of either kind."""
    async with application(database_url, model) as application_:
        yield application_


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


def entry(owner: Caller) -> Entry:
    return Entry(user_id=owner.id, role="assistant", created_at=JUNE, usage=Usage(input_tokens=10, output_tokens=5))


def conflict(kind: str) -> Exception:
    """What the driver raises when another transaction stands in the way."""
    error: Exception
    if kind == "postgresql":
        error = asyncpg.DeadlockDetectedError("deadlock detected")
        return error
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return error


@pytest.mark.parametrize("wrapped", [True, False])
async def test_a_transaction_that_met_another_is_run_again_and_counted_once(
    served: Application, kind: str, wrapped: bool
) -> None:
    attempts = 0

    async def work(session: Session) -> None:
        nonlocal attempts
        attempts += 1
        await token_usage.record(session, entry(served.ayu), UTC)
        if attempts == 1:
            raise DBAPIError("a statement", None, conflict(kind)) if wrapped else conflict(kind)

    await served.database.transaction(work)
    assert attempts == 2
    assert await served.months() == [ONCE]


async def test_a_transaction_that_always_meets_another_gives_up(served: Application, kind: str) -> None:
    attempts = 0

    async def work(session: Session) -> None:
        nonlocal attempts
        attempts += 1
        await token_usage.record(session, entry(served.ayu), UTC)
        raise conflict(kind)

    with pytest.raises(type(conflict(kind))):
        await served.database.transaction(work)
    assert 3 <= attempts <= 10
    assert await served.months() == []


async def test_a_mistake_is_not_run_again(served: Application) -> None:
    attempts = 0

    async def work(session: Session) -> None:
        nonlocal attempts
        attempts += 1
        await token_usage.record(session, entry(served.ayu), UTC)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await served.database.transaction(work)
    assert attempts == 1
    assert await served.months() == []


@only_postgresql
async def test_of_two_transactions_in_deadlock_both_are_counted_once(served: Application) -> None:
    attempts: list[Caller] = []
    reached = {served.ayu: asyncio.Event(), served.service: asyncio.Event()}

    async def record_both(first: Caller, second: Caller) -> None:
        async def work(session: Session) -> None:
            attempts.append(first)
            await token_usage.record(session, entry(first), UTC)
            reached[first].set()
            await reached[second].wait()
            await token_usage.record(session, entry(second), UTC)

        await served.database.transaction(work)

    await asyncio.gather(record_both(served.ayu, served.service), record_both(served.service, served.ayu))
    assert len(attempts) > 2
    assert await served.months() == [Totals(20, 10, 30, Fraction(0), 2)] * 2


@only_postgresql
async def test_a_serialization_failure_is_run_again_and_counted_once(served: Application) -> None:
    attempts = 0

    async def record(session: Session) -> None:
        await token_usage.record(session, entry(served.ayu), UTC)

    async def work(session: Session) -> None:
        nonlocal attempts
        attempts += 1
        await session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        await session.execute(text("SELECT 1 FROM messages"))
        if attempts == 1:
            await served.database.transaction(record)
        await record(session)

    await served.database.transaction(record)
    await served.database.transaction(work)
    assert attempts == 2
    assert await served.months() == [Totals(30, 15, 45, Fraction(0), 3)]


@only_postgresql
async def test_a_request_with_a_cut_connection_is_rerun_and_counts_once(served: Application, database_url: str) -> None:
    other = await asyncpg.connect(database_url)
    try:
        async with other.transaction():
            await other.execute("SELECT 1 FROM users FOR UPDATE")
            sending = asyncio.create_task(served.send("once"))
            deadline = time.monotonic() + DEADLINE_SECONDS
            while not await other.fetch(CUT_OFF_WHO_WAITS):
                assert time.monotonic() < deadline, "nobody waits for the lock"
                await asyncio.sleep(0.01)
        assert (await sending).json() == {"recorded": 1, "duplicates": 0}
    finally:
        await other.close()
    assert await served.months() == [ONCE]


@only_postgresql
async def test_after_a_failover_new_connections_are_opened(served: Application) -> None:
    for _ in range(3):
        async with served.database.engine.connect() as connection:
            await connection.execute(text("SET default_transaction_read_only = on"))
            await connection.commit()
    assert (await served.send("once")).json() == {"recorded": 1, "duplicates": 0}
    assert await served.months() == [ONCE]


class Relay:
    """Stands between the application and PostgreSQL; loses the connection before or after some COMMITs."""

    def __init__(self, target: str) -> None:
        self.plan: list[str] = []
        """For each COMMIT to come `before`, `after`, or `kept`, as are all others."""
        self.is_closed = False
        """Whether new connections are refused."""
        self.commits = 0
        self._target = target

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(writer.close)
            if self.is_closed:
                return
            from_server, to_server = await asyncio.open_unix_connection(self._target)
            stack.callback(to_server.close)
            is_lost = asyncio.Event()
            there = asyncio.create_task(self._pass(reader, to_server, b"COMMIT;\0", lambda: self._commit(is_lost)))
            back = asyncio.create_task(self._pass(from_server, writer, b"COMMIT\0", is_lost.is_set))
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
            for task in (there, back):
                task.cancel()
            await asyncio.gather(there, back, return_exceptions=True)

    def _commit(self, is_lost: asyncio.Event) -> bool:
        self.commits += 1
        how = self.plan.pop(0) if self.plan else "kept"
        if how == "after":
            is_lost.set()
        return how == "before"

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, word: bytes, ends: Callable[[], bool]
    ) -> None:
        while (data := await source.read(65_536)) and not (word in data and ends()):
            sink.write(data)


@contextlib.asynccontextmanager
async def relayed(url: str) -> AsyncIterator[tuple[Relay, str]]:
    """A relay to a database, and the URL by which the database is reached through it."""
    before, directory = url.split("?host=")
    relay = Relay(f"{directory}/.s.PGSQL.5432")
    with tempfile.TemporaryDirectory() as own:
        async with await asyncio.start_unix_server(relay.connected, f"{own}/.s.PGSQL.5432"):
            yield relay, f"{before}?host={own}"


@only_postgresql
@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_commit_whose_answer_was_lost_is_repeated_where_it_can_be(
    database_url: str, model: OpenAIServer, how: str
) -> None:
    async with relayed(database_url) as (relay, url), application(url, model) as application_:
        relay.plan = [how]
        assert sum((await application_.send("once")).json().values()) == 1
        relay.plan = [how, how]
        answer = await application_.ask("once")
        assert answer.status_code == 200, answer.text
        assert relay.plan == []
        assert (await application_.ask("once")).json() == answer.json()
        assert len(model.requests) == 1
        assert await application_.months() == [Totals(20, 10, 30, Fraction(0), 2)]


@only_postgresql
@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_commit_of_unknown_outcome_is_not_repeated_blindly(
    database_url: str, model: OpenAIServer, how: str
) -> None:
    async with relayed(database_url) as (relay, url), application(url, model) as application_:
        relay.plan, before = ["kept", how], relay.commits  # the first one counts the attempt
        body = {"username": "bela", "email": "bela@example.com", "password": accounts.PASSWORD}
        problems.check(await application_.client.post("/auth/register", json=body), 503)
        assert relay.commits == before + 2
        again = await application_.client.post("/auth/register", json=body)
        assert again.status_code == (201 if how == "before" else 409)


@only_postgresql
async def test_a_stored_turn_of_a_lost_response_does_not_stay_pending(database_url: str, model: OpenAIServer) -> None:
    async with relayed(database_url) as (relay, url), application(url, model) as application_:
        relay.plan = ["after"]
        relay.is_closed = True
        problems.check(await application_.ask("once"), 503)
        relay.is_closed = False
        assert await application_.statuses() == {"pending": 1}
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (answer := await application_.ask("once")).status_code == 409:
            assert time.monotonic() < deadline, "the turn is pending for ever"
            await asyncio.sleep(0.05)
        assert answer.status_code in (200, 502), answer.text
        assert await application_.months() == [ONCE] * len(model.requests)


@only_postgresql
async def test_a_connection_lost_while_rows_are_sent_is_an_error_at_once(database: Database) -> None:
    user = "INSERT INTO users (id, username, email, hashed_password) VALUES (1, 'one', 'one', '!')"
    await database.transaction(lambda session: session.execute(text(user)))
    rows = [{"id": number, "email": f"{number} {'x' * 300}"} for number in range(1, 10_000)]
    statement = text("UPDATE users SET email = :email WHERE id = :id")

    async def write() -> None:
        async with database.engine.begin() as connection:
            await connection.execute(statement, rows)

    async with asyncio.timeout(DEADLINE_SECONDS) as limit, database.sessions.begin() as holding:
        await holding.execute(text("SELECT 1 FROM users WHERE id = 1 FOR UPDATE"))
        writing = asyncio.create_task(write())
        while not await database.read(lambda session: session.scalar(text(CUT_OFF_WHO_WAITS))):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        with pytest.raises(DBAPIError):
            await writing
    assert not limit.expired()
