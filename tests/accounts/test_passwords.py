"""Logging in, and the hashes of passwords."""

import asyncio
import json
import os
import threading
import time
from typing import Any

import bcrypt
import httpx
import pytest
from anyio import to_thread
from sqlalchemy import select, update

from app.db.database import Database
from app.security import passwords
from models import User
from services.accounts import logins
from tests.support import accounts, problems
from tests.support.accounts import PASSWORD, Caller

pytestmark = pytest.mark.any_database

ARGON2 = "$argon2id$v=19$m=19456,t=2,p=1$"


@pytest.fixture(autouse=True)
def failed_logins_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for what keeps attackers waiting."""
    monkeypatch.setattr(logins, "FAILED_LOGIN_SECONDS", 0.05)


async def log_in(client: httpx.AsyncClient, username: str, password: str) -> httpx.Response:
    content = json.dumps({"username": username, "password": password}).encode()
    return await client.post("/auth/login", content=content, headers={"Content-Type": "application/json"})


async def stored_hash(database: Database, user: Caller) -> str:
    async with database.reads() as session:
        return (await session.scalars(select(User.hashed_password).where(User.id == user.id))).one()


async def set_user(database: Database, user: Caller, **values: Any) -> None:
    async with database.sessions.begin() as session:
        await session.execute(update(User).where(User.id == user.id).values(**values))


@pytest.mark.parametrize("username", ["ayu", "a user of both ways"])
async def test_both_ways_to_log_in_give_a_token_that_works(client: httpx.AsyncClient, username: str) -> None:
    body = {"username": username, "email": "ayu@example.com", "password": PASSWORD}
    registered = (await client.post("/auth/register", json=body)).json()
    as_json = await log_in(client, username, PASSWORD)
    form = {"grant_type": "password", "username": username, "password": PASSWORD}
    as_form = await client.post("/auth/token", data=form)
    for answer in (as_json, as_form):
        assert answer.status_code == 200, answer.text
        assert set(answer.json()) == {"access_token", "token_type", "expires_in"}
        assert answer.json()["token_type"] == "bearer"
        assert answer.json()["expires_in"] == 30 * 60
        token = answer.json()["access_token"]
        me = await client.get("/auth/me", headers={"Authorization": f"Bearer {token}"})
        assert me.json()["id"] == registered["id"]
    assert as_json.json()["access_token"] != as_form.json()["access_token"]


async def test_all_failed_logins_look_alike(client: httpx.AsyncClient, database: Database) -> None:
    await accounts.register(client, "ayu")
    gone = await accounts.register(client, "gone")
    await set_user(database, gone, is_active=False)
    attempts = [
        ("nobody", PASSWORD),
        ("ayu", "wrong password"),
        ("AYU", PASSWORD),
        ("gone", PASSWORD),
        ("gone", "wrong"),
    ]
    answers = await asyncio.gather(*(log_in(client, *attempt) for attempt in attempts))
    forms = [client.post("/auth/token", data={"username": name, "password": word}) for name, word in attempts]
    answers += await asyncio.gather(*forms)
    for answer in answers:
        problems.check(answer, 401)
        del answer.headers["x-request-id"]
    assert len({(answer.content, str(sorted(answer.headers.items()))) for answer in answers}) == 1


async def test_a_failed_login_never_ends_before_the_same_time(
    client: httpx.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await accounts.register(client, "ayu")
    old = await accounts.add(database, "old")
    await set_user(database, old, hashed_password=bcrypt.hashpw(b"some password", bcrypt.gensalt(4)).decode())
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr("services.accounts.logins.asyncio.sleep", noted)
    monkeypatch.setattr(logins, "FAILED_LOGIN_SECONDS", 60)
    for username, password in (("nobody", PASSWORD), ("ayu", "wrong password"), ("old", PASSWORD)):
        problems.check(await log_in(client, username, password), 401)
    assert len(waits) == 3
    assert all(30 < wait < 60 for wait in waits)
    assert (await log_in(client, "ayu", PASSWORD)).status_code == 200
    assert len(waits) == 3


async def test_failures_take_as_long_as_checking_an_old_hash(
    client: httpx.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await accounts.add(database, "old")
    await set_user(database, old, hashed_password="slow")
    waits: list[float] = []
    sleep, verify = asyncio.sleep, passwords.verify

    async def noted(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    async def slow(password: str, stored: str | None, *, as_bcrypt: bool) -> passwords.Verdict:
        await sleep(1.2 if stored == "slow" else 0)
        return await verify(password, stored, as_bcrypt=as_bcrypt)

    monkeypatch.setattr("services.accounts.logins.asyncio.sleep", noted)
    monkeypatch.setattr(passwords, "verify", slow)
    monkeypatch.setattr(logins, "FAILED_LOGIN_SECONDS", 1)
    for username in ("old", "nobody"):
        began = time.monotonic()
        problems.check(await log_in(client, username, PASSWORD), 401)
        waits[-1] += time.monotonic() - began
    assert all(wait >= 2 for wait in waits), "the second one, too, takes two seconds"


@pytest.mark.usefixtures("real_hashes")
async def test_a_damaged_hash_is_a_failed_login_and_no_error(client: httpx.AsyncClient, database: Database) -> None:
    sound = await passwords.hash_password(PASSWORD)
    damaged = ["", "!", "plain", "$", "€", "$2b$12$short", "$2b$12$€", "$2b$99$" + "." * 53, sound[:-5], sound + "x"]
    damaged += [
        ARGON2,
        ARGON2 + "€",
        "$argon2id$€",
        "$argon2id$",
        sound.replace("t=2", "t=0"),
        sound.replace("p=1", "p=0"),
    ]
    damaged += [sound.replace("m=19456", f"m={memory}") for memory in (0, 2**32 - 1, 10**30)]
    users = [await accounts.add(database, f"user{i}") for i in range(len(damaged))]
    for user, text in zip(users, damaged, strict=True):
        await set_user(database, user, hashed_password=text)
    answers = await asyncio.gather(*(log_in(client, user.username, PASSWORD) for user in users))
    for answer, text in zip(answers, damaged, strict=True):
        assert answer.status_code == 401, f"{text!r}: {answer.text}"
        problems.check(answer, 401)


async def test_impossible_passwords_fail_for_known_and_unknown_users(client: httpx.AsyncClient) -> None:
    await accounts.register(client, "ayu")
    odd = ("nul\x00nul", "half a pair \ud800", "x" * 4096, "🦄" * 4096)
    answers = await asyncio.gather(*(log_in(client, name, word) for word in odd for name in ("ayu", "nobody")))
    for answer in answers:
        assert answer.status_code in (401, 422), answer.text
        problems.check(answer, answer.status_code)
    for answer, other in zip(answers[::2], answers[1::2], strict=True):
        assert answer.content == other.content


async def test_a_username_that_nobody_can_have_is_refused(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(log_in(client, name, PASSWORD) for name in ("", "a\x00b", "\ud800", "x" * 300)))
    for answer in answers:
        assert list(problems.check(answer, 422)["errors"]) == ["username"]


async def test_the_form_refuses_what_the_json_refuses(client: httpx.AsyncClient) -> None:
    odd = [
        {"username": "x" * 300},
        {"username": "a\x00b"},
        {"password": "x" * 5000},
        {"username": ""},
        {"password": ""},
    ]
    odd += [{"grant_type": "client_credentials"}]
    for fields in odd:
        answer = await client.post("/auth/token", data={"username": "ayu", "password": PASSWORD} | fields)
        assert list(problems.check(answer, 422)["errors"]) == list(fields)
    answer = await client.post("/auth/token", content=b"\xff\xfe%zz=&&&")
    problems.check(answer, 422)


@pytest.mark.usefixtures("real_hashes")
async def test_a_new_hash_is_argon2id_with_the_parameters_of_owasp(
    client: httpx.AsyncClient, database: Database
) -> None:
    ayu = await accounts.register(client, "ayu")
    bela = await accounts.register(client, "bela")
    hashes = [await stored_hash(database, user) for user in (ayu, bela)]
    assert all(text.startswith(ARGON2) for text in hashes)
    assert hashes[0] != hashes[1]
    assert (await log_in(client, "ayu", PASSWORD)).status_code == 200
    assert await stored_hash(database, ayu) == hashes[0]


async def test_every_character_of_a_long_password_counts(client: httpx.AsyncClient) -> None:
    for name, password in (("long", "p" * 1000), ("wide", "🦄" * 1024)):
        body = {"username": name, "email": f"{name}@example.com", "password": password}
        assert (await client.post("/auth/register", json=body)).status_code == 201
        assert (await log_in(client, name, password)).status_code == 200
        problems.check(await log_in(client, name, password[:-1] + "x"), 401)


@pytest.mark.parametrize("password", [PASSWORD, "ü" * 100, "x" * 73], ids=["short", "wide", "long"])
@pytest.mark.usefixtures("real_hashes")
async def test_an_old_hash_still_logs_in_and_is_replaced(
    client: httpx.AsyncClient, database: Database, password: str
) -> None:
    ayu = await accounts.add(database, "ayu")
    old = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4)).decode()
    await set_user(database, ayu, hashed_password=old)
    problems.check(await log_in(client, "ayu", "wrong password"), 401)
    assert await stored_hash(database, ayu) == old
    assert (await log_in(client, "ayu", password)).status_code == 200
    new = await stored_hash(database, ayu)
    assert new.startswith(ARGON2)
    assert (await log_in(client, "ayu", password)).status_code == 200
    assert await stored_hash(database, ayu) == new
    if len(password) > 72:
        problems.check(await log_in(client, "ayu", password[:72]), 401)


async def test_a_newer_hash_does_not_overwrite_a_changed_password(database: Database) -> None:
    ayu = await accounts.add(database, "ayu")
    async with database.reads() as session:
        found = await logins.credentials(session, "ayu")
    assert found is not None
    await set_user(database, ayu, hashed_password="changed meanwhile")
    async with database.sessions.begin() as session:
        await logins.replace_hash(session, found, "a newer hash of the old password")
    assert await stored_hash(database, ayu) == "changed meanwhile"
    async with database.sessions.begin() as session:
        found = found._replace(hashed_password="changed meanwhile")
        await logins.replace_hash(session, found, "a newer hash")
    assert await stored_hash(database, ayu) == "a newer hash"


async def test_hashing_keeps_to_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[int] = set()

    def hash_slowly(_password: str) -> str:
        used.add(threading.get_ident())
        time.sleep(0.01)
        return "!"

    monkeypatch.setattr(passwords._context, "hash", hash_slowly)
    for _ in range(5):
        others = [to_thread.run_sync(time.sleep, 0.02) for _ in range(4)]
        await asyncio.gather(*others, *(passwords.hash_password(PASSWORD) for _ in range(4)))
    assert len(used) <= (os.cpu_count() or 1)
