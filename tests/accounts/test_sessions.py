"""What a login gives and how it ends: refresh tokens, logging out, changing the password, and keys that change."""

import asyncio
from datetime import timedelta
from typing import Any

import bcrypt
import httpx
import pytest
from sqlalchemy import event, select, update

from app import clock
from app.db.database import Database
from app.errors import Unauthenticated
from app.security import tokens
from app.security.tokens import Claims
from models import RefreshToken, RevokedToken, User
from services.accounts import logins, sessions
from services.accounts import users as account_service
from services.accounts.sessions import Lifetimes
from tests.support import accounts, problems
from tests.support.accounts import PASSWORD, SECRET_KEY, Caller

NEW_PASSWORD = "another horse, another battery"
OLD_KEY = "Qm7x2VtLr9KpZs4WnYc8HdJfGb3TaEu6RiOoPkXj"
PATHS = [
    ("GET", "/auth/me"),
    ("GET", "/auth/me?include_token_stats=false"),
    ("GET", "/conversations"),
    ("GET", "/auth/token-stats/monthly/2024/12/daily"),
    ("POST", "/chat"),
    ("POST", "/auth/logout"),
]

Tokens = dict[str, Any]


@pytest.fixture(autouse=True)
def failed_logins_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for what keeps attackers waiting."""
    monkeypatch.setattr(logins, "FAILED_LOGIN_SECONDS", 0.05)


@pytest.fixture
def app_settings(database_url: str) -> dict[str, Any]:
    """The key was changed once."""
    return {"database_url": database_url, "secret_key": SECRET_KEY, "previous_secret_keys": f"{OLD_KEY}, "}


@pytest.fixture
async def ayu(client: httpx.AsyncClient) -> Caller:
    """A user."""
    return await accounts.register(client, "ayu")


async def log_in(client: httpx.AsyncClient, password: str = PASSWORD, scope: str = "offline_access") -> Tokens:
    answer = await client.post("/auth/login", json={"username": "ayu", "password": password, "scope": scope})
    assert answer.status_code == 200, answer.text
    given: Tokens = answer.json()
    return given


async def refresh(client: httpx.AsyncClient, given: Tokens) -> httpx.Response:
    return await client.post("/auth/refresh", json={"refresh_token": given["refresh_token"]})


def headers(given: Tokens) -> dict[str, str]:
    return {"Authorization": f"Bearer {given['access_token']}"}


async def works(client: httpx.AsyncClient, given: Tokens) -> bool:
    """Whether an access token is taken, by every kind of endpoint alike; logging out is left for the others."""
    taken = set()
    for method, path in PATHS[:-1]:
        body = {"message": "hello", "stream": False} if method == "POST" else None
        answer = await client.request(method, path, headers=headers(given), json=body)
        if answer.status_code != 200:
            problems.check(answer, 401)
        taken.add(answer.status_code)
    assert len(taken) == 1, taken
    return taken == {200}


@pytest.mark.any_database
async def test_a_refresh_token_is_given_only_where_it_is_asked_for(client: httpx.AsyncClient, ayu: Caller) -> None:
    assert set(await log_in(client, scope="")) == {"access_token", "token_type", "expires_in"}
    form = {"username": "ayu", "password": PASSWORD, "scope": "openid offline_access"}
    for given in (await log_in(client), (await client.post("/auth/token", data=form)).json()):
        assert set(given) == {"access_token", "token_type", "expires_in", "refresh_token", "refresh_expires_in"}
        assert given["refresh_expires_in"] == 14 * 24 * 3600
        assert await works(client, given)


@pytest.mark.any_database
async def test_refresh_tokens_rotate(client: httpx.AsyncClient, ayu: Caller, database: Database) -> None:
    given = await log_in(client)
    seen = [given]
    for _ in range(3):
        answer = await refresh(client, seen[-1])
        assert answer.status_code == 200, answer.text
        seen.append(answer.json())
    assert len({one["refresh_token"] for one in seen}) == len({one["access_token"] for one in seen}) == 4
    for one in seen:
        assert await works(client, one)
    async with database.reads() as session:
        stored = (await session.scalars(select(RefreshToken.token_hash))).all()
    assert len(stored) == 4
    assert not {one["refresh_token"] for one in seen} & set(stored), "hashes alone are stored"


@pytest.mark.any_database
async def test_a_refresh_token_used_twice_ends_its_login_alone(client: httpx.AsyncClient, ayu: Caller) -> None:
    other, stolen = await log_in(client), await log_in(client)
    second = (await refresh(client, stolen)).json()
    third = (await refresh(client, second)).json()
    problems.check(await refresh(client, stolen), 401)
    problems.check(await refresh(client, third), 401)
    for one in (stolen, second, third):
        assert not await works(client, one)
    assert await works(client, other)
    assert (await refresh(client, other)).status_code == 200


async def test_simultaneous_uses_of_a_refresh_token_end_the_login(client: httpx.AsyncClient, ayu: Caller) -> None:
    given = await log_in(client)
    answers = await asyncio.gather(*(refresh(client, given) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401]
    [won] = [answer.json() for answer in answers if answer.status_code == 200]
    problems.check(await refresh(client, won), 401)
    assert not await works(client, won)


async def test_a_refresh_token_expires(client: httpx.AsyncClient, ayu: Caller, database: Database) -> None:
    given = await log_in(client)
    async with database.sessions.begin() as session:
        await session.execute(update(RefreshToken).values(expires_at=clock.now()))
    problems.check(await refresh(client, given), 401)
    await log_in(client)
    async with database.reads() as session:
        assert len((await session.scalars(select(RefreshToken.token_hash))).all()) == 1, "what expired is forgotten"


@pytest.mark.any_database
async def test_what_is_no_refresh_token_is_refused(client: httpx.AsyncClient, ayu: Caller) -> None:
    given = await log_in(client)
    good = given["refresh_token"]
    forged = ["x", "rt", "rt_", "rt__", "rt_1", f"rt_{2**31}_x", f"rt_{2**63}_x", f"rt_{'9' * 200}_x", "rt_-1_x"]
    forged += [good[:-1], good + "x", good.upper(), f" {good}", given["access_token"][:255], "rt_\u0661_x"]
    forged += [good.replace(f"rt_{ayu.id}_", f"rt_{ayu.id + 1}_"), "rt_1_\u00e4", "§"]
    for text in forged:
        problems.check(await refresh(client, {"refresh_token": text}), 401)
    bad: list[Any] = [
        {},
        {"refresh_token": ""},
        {"refresh_token": "rt_1_\x00"},
        {"refresh_token": None},
        {"refresh_token": "x" * 256},
        [],
    ]
    for body in bad:
        problems.check(await client.post("/auth/refresh", json=body), 422)
    half_a_pair, kind = b'{"refresh_token": "rt_1_\\ud800"}', {"Content-Type": "application/json"}
    problems.check(await client.post("/auth/refresh", content=half_a_pair, headers=kind), 422)
    problems.check(await client.get("/auth/me", headers={"Authorization": f"Bearer {good}"}), 401)
    assert (await refresh(client, given)).status_code == 200


@pytest.mark.any_database
async def test_logging_out_ends_this_login_and_no_other(
    client: httpx.AsyncClient, ayu: Caller, database: Database
) -> None:
    for scope in ("", "offline_access"):
        given, other = await log_in(client, scope=scope), await log_in(client)
        mine = [given]
        if scope:
            mine.append((await refresh(client, given)).json())
        assert (await client.post("/auth/logout", headers=headers(mine[-1]))).status_code == 204
        for one in mine:
            assert not await works(client, one)
            problems.check(await client.post("/auth/logout", headers=headers(one)), 401)
        if scope:
            problems.check(await refresh(client, mine[-1]), 401)
        assert await works(client, other)
    async with database.sessions.begin() as session:
        assert len((await session.scalars(select(RevokedToken.jti))).all()) == 3
        await session.execute(update(RevokedToken).values(expires_at=clock.now()))
    await client.post("/auth/logout", headers=headers(await log_in(client)))
    async with database.reads() as session:
        assert len((await session.scalars(select(RevokedToken.jti))).all()) == 1, "what expired is forgotten"


@pytest.mark.any_database
async def test_a_changed_password_ends_every_login_and_begins_one(client: httpx.AsyncClient, ayu: Caller) -> None:
    one, other = await log_in(client), await log_in(client, scope="")
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD, "scope": "offline_access"}
    answer = await client.post("/auth/password", json=body, headers=headers(one))
    assert answer.status_code == 200, answer.text
    for old in (one, other):
        assert not await works(client, old)
    problems.check(await refresh(client, one), 401)
    assert await works(client, answer.json())
    assert (await refresh(client, answer.json())).status_code == 200
    old_password = await client.post("/auth/login", json={"username": "ayu", "password": PASSWORD})
    problems.check(old_password, 401)
    assert await works(client, await log_in(client, NEW_PASSWORD))


@pytest.mark.any_database
async def test_a_token_alone_does_not_change_the_password(client: httpx.AsyncClient, ayu: Caller) -> None:
    body = {"current_password": "a wrong password", "new_password": NEW_PASSWORD}
    problems.check(await client.post("/auth/password", json=body, headers=ayu.headers), 401)
    problems.check(await client.post("/auth/password", json=body | {"current_password": PASSWORD}), 401)
    for new in ("short", "x" * 1025, "a\x00bcdefgh", None):
        weak = {"current_password": PASSWORD, "new_password": new}
        errors = problems.check(await client.post("/auth/password", json=weak, headers=ayu.headers), 422)["errors"]
        assert list(errors) == ["new_password"]
    assert await works(client, await log_in(client))


async def test_of_simultaneous_changes_of_a_password_one_wins(client: httpx.AsyncClient, ayu: Caller) -> None:
    given = await log_in(client)
    bodies = [{"current_password": PASSWORD, "new_password": f"{NEW_PASSWORD} {i}"} for i in range(3)]
    answers = await asyncio.gather(
        *(client.post("/auth/password", json=body, headers=headers(given)) for body in bodies)
    )
    codes = sorted(answer.status_code for answer in answers)
    assert codes[0] == 200
    assert set(codes[1:]) <= {401, 409}
    for body, answer in zip(bodies, answers, strict=True):
        login = await client.post("/auth/login", json={"username": "ayu", "password": body["new_password"]})
        assert login.status_code == (200 if answer.status_code == 200 else 401)


async def test_a_login_during_a_password_change_is_invalid(
    client: httpx.AsyncClient, ayu: Caller, database: Database
) -> None:
    lifetimes = Lifetimes(timedelta(minutes=5), timedelta(days=1))
    async with database.reads() as session:
        found = await logins.credentials(session, "ayu")
    assert found is not None
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    assert (await client.post("/auth/password", json=body, headers=ayu.headers)).status_code == 200
    async with database.sessions.begin() as session:
        with pytest.raises(Unauthenticated):
            await sessions.begin_refreshable(session, found, lifetimes)
    assert not await works(client, {"access_token": token_of(sessions.begin(found, lifetimes))})


def token_of(grant: sessions.Grant) -> str:
    lifetime = timedelta(minutes=5)
    return tokens.issue(
        grant.claims.user_id, SECRET_KEY, clock.now(), lifetime, jti=grant.claims.jti, version=grant.claims.version
    )


async def test_logins_and_logouts_during_a_deletion_are_refused(
    client: httpx.AsyncClient, ayu: Caller, database: Database
) -> None:
    async with database.reads() as session:
        found = await logins.credentials(session, "ayu")
    assert found is not None
    async with database.sessions.begin() as session:
        await account_service.delete(session, ayu.id)
    async with database.sessions.begin() as session:
        with pytest.raises(Unauthenticated):
            await sessions.begin_refreshable(session, found, Lifetimes(timedelta(minutes=5), timedelta(days=1)))
        with pytest.raises(Unauthenticated):
            await sessions.end(session, Claims(ayu.id, "x", 0, clock.now()))


@pytest.mark.any_database
async def test_a_password_with_an_old_hash_can_be_changed(
    client: httpx.AsyncClient, ayu: Caller, database: Database
) -> None:
    old = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    async with database.sessions.begin() as session:
        await session.execute(update(User).values(hashed_password=old))
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    answer = await client.post("/auth/password", json=body, headers=ayu.headers)
    assert answer.status_code == 200, answer.text
    assert await works(client, await log_in(client, NEW_PASSWORD))


async def test_tokens_of_a_user_who_is_not_active_are_refused(
    client: httpx.AsyncClient, ayu: Caller, database: Database
) -> None:
    given = await log_in(client)
    async with database.sessions.begin() as session:
        await session.execute(update(User).values(is_active=False))
    assert not await works(client, given)
    problems.check(await refresh(client, given), 401)
    problems.check(await client.post("/auth/logout", headers=headers(given)), 401)


async def test_tokens_of_a_previous_key_work_while_it_is_named(
    client: httpx.AsyncClient, ayu: Caller, app_settings: dict[str, Any]
) -> None:
    given = {"access_token": tokens.issue(ayu.id, OLD_KEY, clock.now(), timedelta(minutes=5))}
    assert await works(client, given)
    tokens.verify((await log_in(client))["access_token"], SECRET_KEY)
    assert app_settings["previous_secret_keys"].startswith(OLD_KEY)
    with pytest.raises(Unauthenticated):
        tokens.verify(given["access_token"], SECRET_KEY)


async def test_whether_a_token_is_taken_costs_no_statement_more(
    client: httpx.AsyncClient, app: Any, ayu: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    fetch = Database.fetch

    async def noted(database: Database, statement: Any, **values: Any) -> Any:
        statements.append(str(statement))
        return await fetch(database, statement, **values)

    monkeypatch.setattr(Database, "fetch", noted)
    engine = app.state.foundation.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    for path in ("/auth/me", "/auth/me?include_token_stats=false"):
        statements.clear()
        assert (await client.get(path, headers=ayu.headers)).status_code == 200
        [statement] = statements
        assert "revoked_tokens" in statement
