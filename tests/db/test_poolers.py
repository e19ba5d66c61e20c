"""The server and the database layer behind poolers, which may give each transaction another session."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import asyncpg
import httpx
import pytest
from sqlalchemy import Select, bindparam, func, literal_column, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import failures, postgresql_connections, snapshots
from app.db.database import Database
from app.db.failures import PoolerTimeout
from app.db.slots import LEAST_CONNECTIONS
from app.db.urls import Target
from models import User
from tests.support import accounts, invariants, poolers, problems, raw_sql, records
from tests.support.accounts import PASSWORD, SECRET_KEY, Caller
from tests.support.poolers import opened

MODES = ("session", "transaction", "tracked")
SETTINGS = ("statement_timeout", "lock_timeout", "extra_float_digits", "timezone", "datestyle", "jit")
COUNT_USERS: Select[Any] = select(func.count(User.id))
SLEEP: Select[Any] = select(func.pg_sleep(5), bindparam("unused", type_=User.id.type))


@pytest.fixture
def kind() -> str:
    """The only kind of database that has poolers."""
    return "postgresql"


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """How the pooler works; see `poolers.running`."""
    return str(request.param)


@pytest.fixture
def pooled_url(database_url: str, mode: str) -> Iterator[str]:
    """The test's database through a pooler."""
    with poolers.running(database_url, mode) as url:
        yield url


@pytest.fixture
def app_settings(pooled_url: str, mode: str) -> dict[str, Any]:
    """The application asks the pooler."""
    fewest = {"database_pool_size": LEAST_CONNECTIONS} if mode == "transaction" else {}
    return {"database_url": pooled_url, "secret_key": SECRET_KEY, **fewest}


@pytest.mark.long
async def test_the_whole_api_answers_through_a_pooler(client: httpx.AsyncClient, database: Database) -> None:
    admin = await accounts.add(database, "root", role="admin")
    service = await accounts.add(database, "service", role="service")
    await asyncio.gather(*(live(client, f"user{number}", admin, service) for number in range(4)))
    assert (await client.get("/metrics")).status_code == 200
    users = {user_id for user_id, _month in await invariants.check(database)}
    assert len(users) == 3, "one of four was deleted"


async def live(client: httpx.AsyncClient, name: str, admin: Caller, service: Caller) -> None:
    """Does what a user, a backend and an admin do; the first user is deleted in the end."""

    async def call(method: str, path: str, status: int = 200, by: Caller | None = None, **body: Any) -> httpx.Response:
        headers = (by or user).headers
        answer = await client.request(method, path, headers=headers, json=body or None)
        assert answer.status_code == status, f"{method} {path}: {answer.text}"
        return answer

    user = await accounts.register(client, name)
    login = await call("POST", "/auth/login", username=name, password=PASSWORD, scope="offline_access")
    await call("POST", "/auth/refresh", refresh_token=login.json()["refresh_token"])
    whole = (await call("POST", "/chat", message="Hi", stream=False)).json()
    streamed = await call("POST", "/chat", message="Hi again", conversation_id=whole["conversation_id"])
    assert "event: done" in streamed.text
    for _ in range(2):
        await call("GET", "/ready")
        months = (await call("GET", "/auth/me")).json()["token_stats"]["monthly_stats"]
        assert [month["message_count"] for month in months] == [2]
    month = months[0]["month"].replace("-", "/")
    days = (await call("GET", f"/auth/token-stats/monthly/{month}/daily")).json()["daily_stats"]
    talks = await call("GET", f"/auth/token-stats/daily/{days[0]['date']}/conversations")
    assert talks.json()["total_conversations"] == 1
    await call("GET", f"/conversations/{whole['conversation_id']}")
    await call("GET", "/conversations")
    await records.store(client, service, [records.record(user, created_at="2024-06-15T12:00:00Z") for _ in range(300)])
    await call("GET", "/admin/users", by=admin)
    await call("GET", "/admin/usage?month=2024-06", by=admin)
    assert name in (await call("GET", "/admin/usage?month=2024-06&format=csv", by=admin)).text
    await call("DELETE", f"/conversations/{whole['conversation_id']}", 204)
    await call("POST", f"/admin/users/{user.id}/deactivate", by=admin)
    await call("GET", "/auth/me", 401)
    await call("POST", f"/admin/users/{user.id}/activate", by=admin)
    if name == "user0":
        await call("DELETE", f"/admin/users/{user.id}", 204, by=admin)


async def test_timeouts_hold_through_a_pooler(pooled_url: str, database: Database) -> None:
    async with opened(pooled_url, statement_timeout="100", lock_timeout="50") as pooled:
        async with asyncio.timeout(4):
            for ask in (lambda: pooled.scalar(select(func.pg_sleep(5))), lambda: pooled.fetch(SLEEP, unused=1)):
                with pytest.raises((DBAPIError, asyncpg.PostgresError), match="statement timeout"):
                    await ask()
        async with database.sessions.begin() as session:
            await session.execute(text("LOCK TABLE users"))
            async with pooled.sessions() as waiting:
                with pytest.raises(DBAPIError, match="lock timeout"):
                    await waiting.scalar(select(User.id))


async def test_formats_are_ours_whatever_the_database_is_set_to(pooled_url: str, database_url: str) -> None:
    name = pooled_url.rpartition("/")[2]
    odd = {"extra_float_digits": "-3", "timezone": "'Asia/Jakarta'", "datestyle": "'SQL, DMY'"}
    changes = [f"ALTER DATABASE {name} SET {key} = {value}" for key, value in odd.items()]
    await asyncio.to_thread(raw_sql.run, database_url, *changes)
    shown = text("SELECT 0.12345678901234567::float8::text, timestamptz '2024-12-31 23:30Z'::text")
    for url in (pooled_url, database_url):
        async with opened(url) as database, database.reads() as session:
            assert tuple((await session.execute(shown)).one()) == ("0.12345678901234566", "2024-12-31 23:30:00+00")


@pytest.mark.parametrize("mode", ["transaction"])
async def test_nothing_is_left_in_the_sessions_of_a_pooler(database_url: str, mode: str) -> None:
    with poolers.running(database_url, mode, size=1) as url:
        look = [f"SHOW {name}" for name in SETTINGS] + ["SELECT count(*) FROM pg_prepared_statements"]
        before = await values(url, look)
        async with opened(url, statement_timeout="77", lock_timeout="77", jit="off") as pooled:
            ayu = await accounts.add(pooled, "ayu")
            assert (await pooled.fetch(select(User.id).where(User.id == bindparam("id_")), id_=ayu.id))[0][0] == ayu.id
            assert await values(url, look) == before


async def values(url: str, statements: list[str]) -> list[Any]:
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        return [await connection.fetchval(statement) for statement in statements]
    finally:
        await connection.close()


@pytest.mark.parametrize("mode", ["tracked"])
async def test_statements_are_prepared_where_that_works(database_url: str, mode: str) -> None:
    with poolers.running(database_url, mode, size=1) as url:
        async with opened(url) as pooled, opened(Target(url, prepared_statements=False)) as other:
            for database, expected in ((other, 0), (pooled, 1)):
                for _ in range(2):
                    assert await database.fetch(COUNT_USERS) == [(0,)]
                assert await prepared(pooled, "count(users.id)") == expected


async def prepared(database: Database, part: str) -> int | None:
    statement = text("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%' || :part || '%FROM users'")
    async with database.reads() as session:
        found: int | None = await session.scalar(statement, {"part": part})
        return found


@pytest.mark.parametrize("mode", ["transaction"])
async def test_statements_lost_by_the_pooler_are_never_mixed_up(pooled_url: str) -> None:
    async def ask(database: Database, number: int) -> None:
        for _ in range(20):
            async with database.reads() as session:
                assert await session.scalar(select(literal_column(str(number)))) == number

    target = Target(pooled_url, prepared_statements=True)
    async with opened(target) as one, opened(target) as other:
        asked = [ask((one, other)[number % 2], number) for number in range(8)]
        results = await asyncio.gather(*asked, return_exceptions=True)
    failed = [error for error in results if error is not None]
    assert failed, "this pooler keeps no statements"
    for error in failed:
        assert isinstance(error, DBAPIError)
        assert failures.is_unavailable(error)
        assert "leave DATABASE_PREPARED_STATEMENTS empty" in failures.describe(error)


@pytest.mark.parametrize("mode", ["session"])
async def test_statements_may_be_prepared_on_request(pooled_url: str) -> None:
    async with opened(Target(pooled_url, prepared_statements=True)) as pooled:
        rows = await asyncio.gather(*(pooled.fetch(COUNT_USERS) for _ in range(20)))
        assert [list(row) for row in rows] == [[(0,)]] * 20


@pytest.mark.parametrize("mode", ["transaction", "tracked"])
async def test_a_change_of_types_is_noticed_behind_a_pooler(pooled_url: str, database_url: str) -> None:
    made = "CREATE TABLE odd (value float8)", "INSERT INTO odd VALUES (1.5)"
    await asyncio.to_thread(raw_sql.run, database_url, *made)
    async with opened(pooled_url) as pooled:
        for expected, change in ((1.5, "TYPE int8 USING 7"), (7, "TYPE text USING 'x'"), ("x", "TYPE varchar(9)")):
            assert await pooled.read(lambda session: session.scalar(text("SELECT value FROM odd"))) == expected
            await asyncio.to_thread(raw_sql.run, database_url, f"ALTER TABLE odd ALTER value {change}")


async def test_readers_of_one_moment_work_through_a_pooler(pooled_url: str, database: Database) -> None:
    count = select(func.count()).select_from(User)
    async with opened(pooled_url) as pooled, snapshots.open_same(pooled, 3) as sessions:
        before = [await session.scalar(count) for session in sessions]
        await accounts.add(database, "ayu")
        assert [await session.scalar(count) for session in sessions] == before == [0]


class Switch:
    """A port that leads to a server behind a Unix socket, or to a pooler on another port."""

    def __init__(self) -> None:
        self.target: Callable[[], Coroutine[Any, Any, tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
        self._open: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await self.target()
        self._open += [writer, other_writer]
        await asyncio.gather(_pass_on(reader, other_writer), _pass_on(other_reader, writer))

    def cut(self) -> None:
        while self._open:
            self._open.pop().transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


@pytest.mark.parametrize("mode", ["transaction"])
async def test_a_pooler_that_comes_or_goes_is_noticed(pooled_url: str, database_url: str, ayu: Caller) -> None:
    path = database_url.partition("host=")[2] + "/.s.PGSQL.5432"
    port = int(pooled_url.rpartition(":")[2].partition("/")[0])
    switch = Switch()
    direct = lambda: asyncio.open_unix_connection(path)  # noqa: E731
    through = lambda: asyncio.open_connection("127.0.0.1", port)  # noqa: E731
    statement = select(User.id).where(User.username == bindparam("name"))
    async with await asyncio.start_server(switch.serve, "127.0.0.1", 0) as server:
        address = pooled_url.replace(f":{port}/", f":{server.sockets[0].getsockname()[1]}/")
        async with opened(address) as database:
            for target in (direct, through, direct, through):
                switch.target = target
                switch.cut()
                for _ in range(5):
                    rows = await asyncio.gather(*(database.fetch(statement, name="ayu") for _ in range(8)))
                    assert [row[0][0] for row in rows] == [ayu.id] * 8
                assert await is_pooled(database) == (target is through)
            switch.cut()


async def is_pooled(database: Database) -> bool:
    async def work(session: AsyncSession) -> bool:
        await session.execute(text("SELECT 1"))
        return await postgresql_connections.is_pooled(await session.connection())

    return await database.read(work)


async def test_a_full_pooler_is_said_in_time(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql_connections, "POOLER_TIMEOUT_SECONDS", 0.2)
    with poolers.running(database_url, "transaction", size=1) as url:
        async with opened(url) as pooled, opened(url) as other:
            assert await pooled.scalar(select(func.count()).select_from(User)) == 0
            async with other.sessions.begin() as session:
                await session.execute(text("SELECT 1"))
                for ask in (lambda: pooled.scalar(select(User.id)), lambda: pooled.fetch(SLEEP, unused=1)):
                    async with asyncio.timeout(5):
                        with pytest.raises(PoolerTimeout) as raised:
                            await ask()
                    assert failures.is_unavailable(raised.value)
                    assert "default_pool_size" in failures.describe(raised.value)
            assert await pooled.scalar(select(func.count()).select_from(User)) == 0, "and goes on"


async def test_a_pooler_whose_server_is_gone_is_unavailable(client: httpx.AsyncClient, database_url: str) -> None:
    assert (await client.get("/ready")).status_code == 200
    name = database_url.partition("?")[0].rpartition("/")[2]
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    await asyncio.to_thread(raw_sql.run, database_url, cut)
    assert (await client.get("/ready")).status_code in (200, 503)
    answer = await client.get("/auth/me", headers=Caller(1, "nobody").headers)
    problems.check(answer, 401)
