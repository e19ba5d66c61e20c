"""A forgotten password: an admin's one-time token, what it ends, and what ends it."""

import asyncio
import logging
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from app import clock
from app.db.database import Database
from app.security import tokens
from models import PasswordReset, User
from services.accounts import logins
from tests.support import accounts, problems, raw_sql
from tests.support.accounts import PASSWORD, SECRET_KEY, Caller

pytestmark = pytest.mark.any_database

NEW_PASSWORD = "another horse, another battery"
LIMIT = 4


@pytest.fixture(autouse=True)
def failed_logins_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for what keeps attackers waiting."""
    monkeypatch.setattr(logins, "FAILED_LOGIN_SECONDS", 0.05)


@pytest.fixture
def limits() -> dict[str, int]:
    """Those of production."""
    return {}


@pytest.fixture
def app_settings(database_url: str, limits: dict[str, int]) -> dict[str, Any]:
    """The settings of the application under test."""
    return {"database_url": database_url, "secret_key": SECRET_KEY, **limits}


@pytest.fixture
async def admin(database: Database) -> Caller:
    """An admin."""
    return await accounts.add(database, "root", role="admin")


@pytest.fixture
async def ayu(client: httpx.AsyncClient, admin: Caller) -> Caller:
    """A user who forgets the password."""
    return await accounts.register(client, "ayu")


async def issue(client: httpx.AsyncClient, admin: Caller, user: Caller) -> dict[str, Any]:
    answer = await client.post(f"/admin/users/{user.id}/reset-password", headers=admin.headers)
    assert answer.status_code == 201, answer.text
    issued: dict[str, Any] = answer.json()
    assert issued.keys() == {"token", "expires_at", "path"}
    return issued


async def reset(client: httpx.AsyncClient, token: str, password: str = NEW_PASSWORD) -> httpx.Response:
    return await client.post("/auth/reset-password", json={"token": token, "new_password": password})


async def log_in(client: httpx.AsyncClient, password: str) -> httpx.Response:
    body = {"username": "ayu", "password": password, "scope": "offline_access"}
    return await client.post("/auth/login", json=body)


async def test_a_reset_sets_the_password_and_ends_every_login(
    client: httpx.AsyncClient, admin: Caller, ayu: Caller
) -> None:
    before = (await log_in(client, PASSWORD)).json()
    issued = await issue(client, admin, ayu)
    left = datetime.fromisoformat(issued["expires_at"]) - clock.now()
    assert timedelta(hours=23, minutes=59) < left <= timedelta(hours=24)
    assert (await log_in(client, PASSWORD)).status_code == 200, "issued alone it ends nothing"
    answer = await client.post(issued["path"], json={"token": issued["token"], "new_password": NEW_PASSWORD})
    assert (answer.status_code, answer.content) == (204, b"")
    headers = {"Authorization": f"Bearer {before['access_token']}"}
    problems.check(await client.get("/auth/me", headers=headers), 401)
    refreshed = await client.post("/auth/refresh", json={"refresh_token": before["refresh_token"]})
    problems.check(refreshed, 401)
    problems.check(await log_in(client, PASSWORD), 401)
    assert (await log_in(client, NEW_PASSWORD)).status_code == 200


async def test_the_path_opens_a_page_that_asks_for_the_password(
    client: httpx.AsyncClient, admin: Caller, ayu: Caller
) -> None:
    issued = await issue(client, admin, ayu)
    path, _, fragment = issued["path"].partition("#")
    assert fragment == issued["token"], "browsers send no fragment, so that no log of a proxy holds it"
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert 'type="password"' in answer.text
    assert "http" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


async def test_wrong_used_expired_and_replaced_tokens_answer_alike(
    client: httpx.AsyncClient, admin: Caller, ayu: Caller, database: Database
) -> None:
    bela = await accounts.register(client, "bela")
    replaced = (await issue(client, admin, ayu))["token"]
    used = (await issue(client, admin, ayu))["token"]
    assert (await reset(client, used)).status_code == 204
    expired = (await issue(client, admin, ayu))["token"]
    async with database.sessions.begin() as session:
        await session.execute(update(PasswordReset).values(expires_at=clock.now()))
    good = (await issue(client, admin, bela))["token"]
    others = good.replace(f"_{bela.id}_", f"_{ayu.id}_")
    forged = [tokens.new_owned_secret("pr", user_id) for user_id in (ayu.id, bela.id, 2**31 - 1)]
    odd = ["x", "pr_", "pr_1", f"pr_{2**31}_x", f"pr_{10**30}_x", good[:-1], good + "x", good.upper(), "x" * 255]
    answers = [await reset(client, token) for token in (replaced, used, expired, others, *forged, *odd)]
    for answer in answers:
        problems.check(answer, 401)
    assert len({answer.text for answer in answers}) == 1
    assert (await log_in(client, NEW_PASSWORD)).status_code == 200
    assert (await reset(client, good)).status_code == 204, "none of these ended it"


@pytest.mark.parametrize("ending", ["password change", "deactivation", "deletion", "deactivated by the operator"])
async def test_a_token_ends_with_what_it_was_issued_for(
    client: httpx.AsyncClient, admin: Caller, ayu: Caller, database: Database, ending: str
) -> None:
    token = (await issue(client, admin, ayu))["token"]
    user = f"/admin/users/{ayu.id}"
    if ending == "password change":
        body = {"current_password": PASSWORD, "new_password": "a third horse altogether"}
        assert (await client.post("/auth/password", json=body, headers=ayu.headers)).status_code == 200
    elif ending == "deactivation":
        assert (await client.post(f"{user}/deactivate", headers=admin.headers)).status_code == 200
        assert (await client.post(f"{user}/activate", headers=admin.headers)).status_code == 200
    elif ending == "deletion":
        assert (await client.delete(user, headers=admin.headers)).status_code == 204
    else:
        async with database.sessions.begin() as session:
            await session.execute(update(User).where(User.id == ayu.id).values(is_active=False))
    problems.check(await reset(client, token), 401)
    if ending != "deactivated by the operator":
        async with database.reads() as session:
            assert await session.scalar(select(func.count()).select_from(PasswordReset)) == 0


async def test_a_token_is_stored_as_a_hash_and_never_logged(
    client: httpx.AsyncClient, admin: Caller, ayu: Caller, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = (await issue(client, admin, ayu))["token"]
    secret = token.split("_", 2)[2]
    stored = await asyncio.to_thread(raw_sql.contents, database_url, "password_resets")
    assert tokens.hash_secret(token) in str(stored)
    assert secret not in str(stored)
    await reset(client, token, "short")
    assert (await reset(client, token)).status_code == 204
    shown = [
        str(vars(record)) for record in caplog.records if record.name in ("access", "routers.admin", "routers.logins")
    ]
    said = [record.getMessage() for record in caplog.records]
    assert f"admin {admin.id} issued a password reset for user {ayu.id}" in said
    assert f"user {ayu.id} reset their password" in said
    for text in (*shown, *said):
        assert secret not in text
        assert NEW_PASSWORD not in text


async def test_a_refused_password_does_not_use_the_token_up(
    client: httpx.AsyncClient, admin: Caller, ayu: Caller
) -> None:
    token = (await issue(client, admin, ayu))["token"]
    for bad in ("short", "password1", "ayu@example.com", "x" * 2000, "", "a\x00bcdefgh"):
        problem = problems.check(await reset(client, token, bad), 422)
        assert list(problem["errors"]) == ["new_password"], bad
    assert (await reset(client, token)).status_code == 204


async def test_of_simultaneous_uses_one_succeeds(client: httpx.AsyncClient, admin: Caller, ayu: Caller) -> None:
    token = (await issue(client, admin, ayu))["token"]
    words = [f"{NEW_PASSWORD} {number}" for number in range(4)]
    answers = await asyncio.gather(*(reset(client, token, word) for word in words))
    assert sorted(answer.status_code for answer in answers) == [204, 401, 401, 401]
    [word] = [word for word, answer in zip(words, answers, strict=True) if answer.status_code == 204]
    assert (await log_in(client, word)).status_code == 200


@pytest.mark.parametrize("limits", [{"max_failed_logins_per_address": LIMIT, "max_failed_logins_per_account": 0}])
async def test_attempts_from_one_address_are_limited(client: httpx.AsyncClient, admin: Caller, ayu: Caller) -> None:
    await _exhaust(client, admin, ayu, [tokens.new_owned_secret("pr", user_id) for user_id in range(1, LIMIT + 1)])


@pytest.mark.parametrize("limits", [{"max_failed_logins_per_address": 0, "max_failed_logins_per_account": LIMIT}])
async def test_attempts_at_one_account_are_limited(client: httpx.AsyncClient, admin: Caller, ayu: Caller) -> None:
    await _exhaust(client, admin, ayu, [tokens.new_owned_secret("pr", ayu.id) for _ in range(LIMIT)])


async def _exhaust(client: httpx.AsyncClient, admin: Caller, ayu: Caller, guesses: list[str]) -> None:
    for _ in range(LIMIT + 1):  # those that succeed do not count
        assert (await reset(client, (await issue(client, admin, ayu))["token"])).status_code == 204
    good = (await issue(client, admin, ayu))["token"]
    for guess in guesses:
        problems.check(await reset(client, guess), 401)
    answer = await reset(client, good)
    problems.check(answer, 429)
    assert 0 < int(answer.headers["retry-after"]) <= 15 * 60
    assert (await log_in(client, NEW_PASSWORD)).status_code == 200, "logins have limits of their own"


async def test_who_cannot_use_a_reset_gets_none(
    client: httpx.AsyncClient, admin: Caller, ayu: Caller, database: Database
) -> None:
    async def status(user_id: Any) -> int:
        answer = await client.post(f"/admin/users/{user_id}/reset-password", headers=admin.headers)
        problems.check(answer, answer.status_code)
        return answer.status_code

    async with database.sessions.begin() as session:
        await session.execute(update(User).where(User.id == ayu.id).values(is_active=False))
    assert await status(ayu.id) == 409, "activate the account first"
    assert await status(admin.id) == 409, "who knows their password changes it"
    assert [await status(user_id) for user_id in (2**31 - 1, 0, 2**31, "x")] == [404, 422, 422, 422]
    async with database.reads() as session:
        assert await session.scalar(select(func.count()).select_from(PasswordReset)) == 0
