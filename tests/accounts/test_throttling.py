"""Guessing passwords and registering in masses is stopped; whom the guessing is about is not locked out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import func, select, update

from app import BASE_DIR, clock
from app.db.database import Database
from app.errors import TooManyRequests
from models import Attempt
from services.accounts import attempts, logins
from services.accounts.attempts import Limit
from tests.support import accounts, commands, problems, programs
from tests.support.accounts import PASSWORD, SECRET_KEY

ClientFrom = Callable[[str], httpx.AsyncClient]


@pytest.fixture(autouse=True)
def failed_logins_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for what keeps attackers waiting."""
    monkeypatch.setattr(logins, "FAILED_LOGIN_SECONDS", 0.01)


@pytest.fixture
def limits() -> dict[str, int]:
    """Low ones, so that tests are quick."""
    return {
        "max_failed_logins_per_account": 3,
        "max_failed_logins_per_account_total": 7,
        "max_failed_logins_per_address": 5,
        "max_registrations_per_address": 4,
    }


@pytest.fixture
def app_settings(database_url: str, limits: dict[str, int]) -> dict[str, Any]:
    """The settings of the application under test."""
    return {"database_url": database_url, "secret_key": SECRET_KEY, **limits}


@pytest.fixture
async def client_from(app: FastAPI) -> AsyncIterator[ClientFrom]:
    """Clients of any address."""
    clients: dict[str, httpx.AsyncClient] = {}

    def get(address: str) -> httpx.AsyncClient:
        if address not in clients:
            transport = httpx.ASGITransport(app=app, client=(address, 1234), raise_app_exceptions=False)
            clients[address] = httpx.AsyncClient(transport=transport, base_url="http://test")
        return clients[address]

    yield get
    for client in clients.values():
        await client.aclose()


async def log_in(client: httpx.AsyncClient, username: str = "ayu", password: str = "a wrong password") -> int:
    answer = await client.post("/auth/login", json={"username": username, "password": password})
    if answer.status_code != 200:
        problems.check(answer, answer.status_code)
    if answer.status_code == 429:
        assert 0 < int(answer.headers["retry-after"]) <= 15 * 60
    return answer.status_code


async def guess(client: httpx.AsyncClient, times: int, username: str = "ayu") -> list[int]:
    return [await log_in(client, username) for _ in range(times)]


async def windows_end(database: Database) -> None:
    async with database.sessions.begin() as session:
        await session.execute(update(Attempt).values(expires_at=clock.now()))


@pytest.mark.parametrize("username", ["ayu", "nobody"])
@pytest.mark.any_database
async def test_guessing_one_account_is_stopped_until_the_window_ends(
    client_from: ClientFrom, database: Database, username: str
) -> None:
    attacker = client_from("203.0.113.1")
    await accounts.register(client_from("198.51.100.1"), "ayu")
    for _ in range(2):
        assert await guess(attacker, 5, username) == [401, 401, 401, 429, 429]
        assert await log_in(attacker, username, PASSWORD) == 429, "the right one is not told from wrong ones"
        await windows_end(database)


@pytest.mark.any_database
async def test_the_owner_of_an_attacked_account_gets_in_from_elsewhere(client_from: ClientFrom) -> None:
    await accounts.register(client_from("198.51.100.1"), "ayu")
    assert await guess(client_from("203.0.113.1"), 4) == [401, 401, 401, 429]
    assert await log_in(client_from("198.51.100.1"), password=PASSWORD) == 200
    assert await log_in(client_from("203.0.113.1"), password=PASSWORD) == 429


@pytest.mark.any_database
async def test_guessing_from_many_addresses_spares_known_addresses(
    client_from: ClientFrom,
) -> None:
    owner = client_from("198.51.100.1")
    await accounts.register(owner, "ayu")
    assert await log_in(owner, password=PASSWORD) == 200
    guesses = [await log_in(client_from(f"203.0.113.{i}")) for i in range(9)]
    assert guesses == [401] * 7 + [429] * 2
    assert await log_in(client_from("203.0.113.99"), password=PASSWORD) == 429
    assert await log_in(owner, password=PASSWORD) == 200
    assert await guess(owner, 4) == [401, 401, 401, 429], "there, too, not without end"


@pytest.mark.any_database
async def test_the_owners_logins_give_attackers_no_more_guesses(client_from: ClientFrom) -> None:
    owner = client_from("198.51.100.1")
    await accounts.register(owner, "ayu")
    codes = []
    for i in range(9):
        assert await log_in(owner, password=PASSWORD) == 200
        codes.append(await log_in(client_from(f"203.0.113.{i}")))
    assert codes == [401] * 7 + [429] * 2


@pytest.mark.any_database
async def test_guessing_many_accounts_from_one_address_is_stopped(client_from: ClientFrom) -> None:
    attacker = client_from("203.0.113.1")
    assert [await log_in(attacker, f"user{i}") for i in range(7)] == [401] * 5 + [429] * 2
    await accounts.register(client_from("198.51.100.1"), "ayu")
    assert await log_in(attacker, password=PASSWORD) == 429
    assert await log_in(client_from("198.51.100.1"), password=PASSWORD) == 200


@pytest.mark.any_database
async def test_a_success_keeps_the_failures_of_other_accounts(client_from: ClientFrom) -> None:
    attacker = client_from("203.0.113.1")
    await accounts.register(client_from("198.51.100.1"), "mallory")
    codes = []
    for i in range(7):
        codes += [await log_in(attacker, f"user{i}"), await log_in(attacker, "mallory", PASSWORD)]
    assert codes == [401, 200] * 4 + [401, 429] + [429] * 4


async def test_the_same_name_written_differently_is_one_account(client_from: ClientFrom) -> None:
    attacker = client_from("203.0.113.1")
    await accounts.register(client_from("198.51.100.1"), "ayu")
    names = ("ayu", "AYU", "\uff41\uff59\uff55", "Ayu", "\uff21yu")
    assert [await log_in(attacker, name) for name in names] == [401] * 3 + [429] * 2


@pytest.mark.any_database
async def test_an_ipv6_network_is_one_address(client_from: ClientFrom) -> None:
    addresses = ("2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::1", "2001:db8::3", "2001:db8:0:1::1")
    assert [await log_in(client_from(address)) for address in addresses] == [401] * 3 + [429, 401]
    mapped = ("::ffff:192.0.2.1", "192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1", "192.0.2.2")
    assert [await log_in(client_from(address), "bela") for address in mapped] == [401] * 3 + [429, 401]


async def test_good_logins_are_not_counted_however_many_come_at_once(client_from: ClientFrom) -> None:
    client = client_from("198.51.100.1")
    await accounts.register(client, "ayu")
    assert await guess(client, 2) == [401, 401]
    assert await asyncio.gather(*(log_in(client, password=PASSWORD) for _ in range(12))) == [200] * 12
    assert await guess(client, 2) == [401, 401], "a success counts its account anew"


async def test_simultaneous_guesses_are_limited_like_successive_ones(client_from: ClientFrom) -> None:
    attacker = client_from("203.0.113.1")
    await accounts.register(client_from("198.51.100.1"), "ayu")
    codes = await asyncio.gather(*(log_in(attacker) for _ in range(12)))
    assert sorted(codes) == [401] * 3 + [429] * 9
    spread = await asyncio.gather(*(log_in(client_from(f"203.0.113.{i}")) for i in range(2, 12)))
    assert sorted(spread) == [401] * 4 + [429] * 6


@pytest.mark.any_database
async def test_a_stolen_token_does_not_help_guessing_the_password(client_from: ClientFrom) -> None:
    thief = client_from("203.0.113.1")
    ayu = await accounts.register(client_from("198.51.100.1"), "ayu")
    body = {"current_password": "a wrong password", "new_password": "another good password"}
    codes = [(await thief.post("/auth/password", json=body, headers=ayu.headers)).status_code for _ in range(4)]
    assert codes == [401] * 3 + [429]
    assert await log_in(thief, password=PASSWORD) == 429


@pytest.mark.any_database
async def test_registering_in_masses_is_stopped(client_from: ClientFrom, database: Database) -> None:
    async def register(address: str, name: str) -> int:
        body = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
        answer = await client_from(address).post("/auth/register", json=body)
        if answer.status_code == 429:
            problems.check(answer, 429)
            assert 0 < int(answer.headers["retry-after"]) <= 60 * 60
        return answer.status_code

    codes = [await register("203.0.113.1", name) for name in ("a", "a", "b", "c", "d", "e")]
    assert codes == [201, 409, 201, 201, 429, 429], "asking which names are taken counts, too"
    assert await register("203.0.113.2", "d") == 201
    await windows_end(database)
    assert await register("203.0.113.1", "e") == 201


@pytest.mark.parametrize("limits", [dict.fromkeys(("max_failed_logins_per_account",), 0)])
@pytest.mark.any_database
async def test_zero_is_no_limit(client_from: ClientFrom) -> None:
    assert await guess(client_from("203.0.113.1"), 12) == [401] * 12


@pytest.mark.any_database
async def test_stored_attempts_reveal_nothing_and_stay_few(client_from: ClientFrom, database: Database) -> None:
    await guess(client_from("203.0.113.1"), 4, "a password typed as a name")
    await windows_end(database)
    for i in range(3):
        await log_in(client_from(f"203.0.113.{i}"), f"user{i}")
    async with database.reads() as session:
        rows = (await session.scalars(select(Attempt))).all()
    assert len(rows) == 3 * 3, "what is over is removed by whoever comes next"
    assert all(len(row.key) == 64 and int(row.key, 16) for row in rows)


@pytest.mark.long
async def test_limits_hold_for_several_processes_together(
    kind: str, database_url: str, tmp_path: Path, limits: dict[str, int]
) -> None:
    settings = {name.upper(): str(value) for name, value in limits.items()}
    settings |= {"DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY, "WORKERS": "2"}
    settings["MAX_FAILED_LOGINS_PER_ADDRESS"] = "100"
    body = {"username": "ayu", "password": "a wrong password"}
    with programs.serving(BASE_DIR / "main.py", tmp_path, commands.free_port(), settings) as address:

        async def attempt() -> int:
            # A connection of its own each, so that both workers get some.
            async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=30) as client:
                return (await client.post("/auth/login", json=body)).status_code

        codes = await asyncio.gather(*(attempt() for _ in range(20)))
    assert sorted(codes) == [401] * 3 + [429] * 17


async def test_processes_that_count_at_the_same_moment_lose_nothing(database: Database, database_url: str) -> None:
    @asynccontextmanager
    async def other() -> AsyncIterator[Database]:
        opened = Database.open(database_url)
        yield opened
        await opened.close()

    limits = [Limit(attempts.key(name), 20, timedelta(minutes=1)) for name in ("a", "b", "c")]

    async def count(opened: Database, turn: int) -> bool:
        mine = limits if turn % 2 else limits[::-1]
        try:
            await opened.transaction(lambda session: attempts.count(session, mine))
        except TooManyRequests:
            return False
        return True

    async with other() as second:
        counted = await asyncio.gather(*(count((database, second)[i % 2], i) for i in range(30)))
    assert sum(counted) == 20
    async with database.reads() as session:
        assert await session.scalar(select(func.min(Attempt.count))) == 20
