"""Connections that are lost at a commit or while rows are sent: repeated where that is safe, and exact."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from fractions import Fraction

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.db.database import Database
from tests.support import accounts, problems
from tests.support.invariants import Totals
from tests.support.openai_server import OpenAIServer
from tests.support.outages import CUT_OFF_WHO_WAITS, DEADLINE_SECONDS, ONCE, application, only_postgresql

pytestmark = pytest.mark.long


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
