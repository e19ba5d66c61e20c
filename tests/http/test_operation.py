"""What operators see: health, readiness, errors of every kind, and a database that is down."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.engine import make_url

from app.db import revisions
from app.db.database import Database
from routers import operation
from tests.conftest import UrlOf
from tests.support import accounts, problems
from tests.support.accounts import PASSWORD, SECRET_KEY
from tests.support.shared_databases import execute

pytestmark = pytest.mark.any_database

ALIVE = {"status": "ok"}


@pytest.fixture
def app_settings(database_url: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings of the application under test; a parameter names the fixture that gives another database."""
    other = getattr(request, "param", None)
    url = request.getfixturevalue(other) if other else database_url
    return {"database_url": url, "secret_key": SECRET_KEY}


@pytest.fixture
def absent_database_url(kind: str, tmp_path: Path) -> str:
    """Of a database that is not there, with a password that must not be told."""
    if kind == "sqlite":
        return f"sqlite:///{tmp_path / 'no' / 'such' / 'directory.db'}"
    return f"postgresql://someone:hunter2@/nothing?host={tmp_path}"


async def test_a_healthy_server_says_so(client: httpx.AsyncClient) -> None:
    for path in ("/health", "/ready"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()) == (200, ALIVE)


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_load_balancers_may_ask_with_head(client: httpx.AsyncClient) -> None:
    for path in ("/health", "/ready"):
        assert (await client.head(path)).status_code == 200


@pytest.mark.parametrize("app_settings", ["empty_database_url"], indirect=True)
async def test_a_database_without_tables_is_not_ready(client: httpx.AsyncClient) -> None:
    problems.check(await client.get("/ready"), 503)
    assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize("revision", ["0001", "ffff"])
async def test_a_database_of_another_schema_is_not_ready(
    client: httpx.AsyncClient, database: Database, revision: str
) -> None:
    async with database.sessions.begin() as session:
        head = (await session.execute(text("SELECT version_num FROM alembic_version"))).scalar_one()
        await session.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    assert head != revision
    problems.check(await client.get("/ready"), 503)
    assert (await client.get("/health")).status_code == 200
    async with database.sessions.begin() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": head})
    assert (await client.get("/ready")).status_code == 200


async def test_a_database_that_never_answers_is_not_ready(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_database: Database) -> bool:
        return await asyncio.Event().wait()

    monkeypatch.setattr(revisions, "is_current", never)
    monkeypatch.setattr(operation, "READY_SECONDS", 0.1)
    problems.check(await client.get("/ready"), 503)


@pytest.mark.parametrize("app_settings", ["absent_database_url"], indirect=True)
async def test_routes_answer_503_without_a_database(client: httpx.AsyncClient) -> None:
    caller = accounts.Caller(1, "ayu")
    registration = {"username": "ayu", "email": "ayu@example.com", "password": PASSWORD}
    record = {"id": "1", "user_id": 1, "model": "m", "input_tokens": 1, "output_tokens": 1}
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/ready", {}),
        ("GET", "/auth/me", {}),
        ("GET", "/auth/me?include_token_stats=false", {}),
        ("POST", "/auth/register", registration),
        ("POST", "/auth/login", {"username": "ayu", "password": PASSWORD}),
        ("POST", "/chat", {"message": "Hi", "stream": False}),
        ("POST", "/usage/records", {"records": [record]}),
    ]
    for method, path, body in requests:
        answer = await client.request(method, path, headers=caller.headers, json=body or None)
        assert answer.status_code == 503, f"{path}: {answer.text}"
        detail = problems.check(answer, 503)["detail"]
        assert "hunter2" not in answer.text
        assert "/" not in detail, "no path, no address"
    assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize("kind", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("away", "back"),
    [
        ("ALTER DATABASE {0} RENAME TO {0}_away", "ALTER DATABASE {0}_away RENAME TO {0}"),
        ("ALTER DATABASE {0} ALLOW_CONNECTIONS false", "ALTER DATABASE {0} ALLOW_CONNECTIONS true"),
    ],
    ids=["gone", "closed"],
)
async def test_a_database_that_returns_needs_no_restart(
    client: httpx.AsyncClient, postgresql: UrlOf, database_url: str, database: Database, away: str, back: str
) -> None:
    ayu = await accounts.add(database, "ayu")
    await database.close()
    assert (await client.get("/auth/me", headers=ayu.headers)).status_code == 200
    name = make_url(database_url).database
    disconnect = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    await execute(postgresql("postgres"), disconnect, away.format(name), disconnect)
    for path in ("/ready", "/auth/me"):
        problems.check(await client.get(path, headers=ayu.headers), 503)
    await execute(postgresql("postgres"), back.format(name))
    for path in ("/ready", "/auth/me"):
        assert (await client.get(path, headers=ayu.headers)).status_code == 200
    await execute(postgresql("postgres"), disconnect)
    assert (await client.get("/auth/me", headers=ayu.headers)).status_code == 200, "dead connections are replaced"


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_unknown_paths_and_methods_are_problems(client: httpx.AsyncClient) -> None:
    for path in ("/nothing", "/auth", "/auth/me/deeper", "/auth/%00", "/%ff", "/\u00e4", "/../../etc/passwd"):
        problems.check(await client.get(path), 404)
    for method, path in (("GET", "/auth/login"), ("DELETE", "/auth/me"), ("PUT", "/chat"), ("POST", "/health")):
        answer = await client.request(method, path)
        problems.check(answer, 405)
        assert method not in answer.headers["allow"]
    for path, methods in (("/conversations/x", "DELETE, GET"), ("/health", "GET, HEAD"), ("/chat", "POST")):
        assert (await client.request("PATCH", path)).headers["allow"] == methods


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_server_errors_are_logged_and_hidden_from_callers(
    app: FastAPI, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "hunter" + "2"  # in two parts: a traceback shows lines of this file

    async def fail() -> None:
        raise RuntimeError(f"{secret}: SELECT secrets")

    app.add_api_route("/fail", fail)
    problem = problems.check(await client.get("/fail"), 500)
    assert "hunter2" not in str(problem)
    assert "RuntimeError" not in str(problem)
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert "hunter2" not in caplog.text
    assert "in fail" in caplog.text
    assert "RuntimeError" in caplog.text
    assert "Traceback" in caplog.text
    # Nothing is left for the server to log again.
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as strict:
        problems.check(await strict.get("/fail"), 500)
