"""What every request passes and every answer has: ids, headers, and lines in the log."""

import json
import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app import logs, request_ids
from app.db.database import Database
from tests.support import accounts, problems
from tests.support.accounts import PASSWORD, SECRET_KEY


@pytest.fixture(params=["sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """The edge does not depend on the database."""
    return str(request.param)


@pytest.fixture
def changes() -> dict[str, Any]:
    """Of settings; a parameter of a test's own sets others."""
    return {}


@pytest.fixture
def app_settings(database_url: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The settings of the application under test."""
    return {"database_url": database_url, "secret_key": SECRET_KEY, **changes}


async def test_every_answer_has_the_headers_that_protect_its_reader(
    app: FastAPI, client: httpx.AsyncClient, database: Database
) -> None:
    async def fail() -> None:
        raise RuntimeError

    app.add_api_route("/fail", fail)
    caller = await accounts.register(client, "ayu")
    login = {"username": "ayu", "password": PASSWORD}
    answers = [
        await client.post("/auth/login", json=login),
        await client.post("/auth/token", data=login),
        await client.get("/auth/me", headers=caller.headers),
        await client.get("/nothing"),
        await client.get("/fail"),
        await client.get("/docs"),
        await client.get("/openapi.json"),
        await client.post("/chat", headers=caller.headers, json={"message": "Hi"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 500, 200, 200, 200]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "strict-transport-security" not in answer.headers
        assert "server" not in answer.headers
        assert len(answer.headers.get_list("cache-control")) == 1


@pytest.mark.parametrize("changes", [{"hsts_seconds": 31_536_000}])
async def test_https_is_demanded_where_it_is_configured(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).headers["strict-transport-security"] == "max-age=31536000"


async def test_a_request_keeps_a_sane_id_and_gets_one_otherwise(client: httpx.AsyncClient) -> None:
    for sane in ("a", "7b5c-4.2:1_x", "x" * 128):
        assert (await client.get("/health", headers={"X-Request-ID": sane})).headers["x-request-id"] == sane
    for odd in (b"", b"x" * 129, b"a b", b"a\tb", b'a"b', b"a;b", "\u00e4".encode(), b"<a>", b"\x1b[1m"):
        answer = await client.get("/health", headers=[(b"X-Request-ID", odd)])
        assert answer.headers["x-request-id"].encode() != odd
        assert answer.headers["x-request-id"].isalnum()
    made = {(await client.get("/health")).headers["x-request-id"] for _ in range(10)}
    assert len(made) == 10


async def test_each_request_is_one_log_line_without_secrets(
    client: httpx.AsyncClient, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caller = await accounts.register(client, "ayu")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="access"):
        answer = await client.post(
            "/chat?token=hunter2",
            headers=caller.headers | {"X-Request-ID": "mine", "Cookie": "hunter2", "Idempotency-Key": "hunter2"},
            json={"message": "hunter2", "stream": False},
        )
        await client.post("/auth/login", json={"username": "hunter2", "password": "hunter2"})
        await client.get("/a%0Ab%1b")
    assert answer.status_code == 200
    chat, login, odd = (record for record in caplog.records if record.name == "access")
    assert chat.getMessage().startswith("POST /chat 200 in ")
    shown: dict[str, Any] = vars(chat)
    assert (shown["method"], shown["path"], shown["status"]) == ("POST", "/chat", 200)
    assert shown["request_id"] == "mine"
    assert shown["duration_ms"] > 0
    assert shown["client"] == "127.0.0.1"
    assert login.getMessage().startswith("POST /auth/login 401 in ")
    assert odd.getMessage().startswith("GET /a%0Ab%1b 404 in ")
    token = caller.headers["Authorization"].split()[1]
    for record in (chat, login, odd):
        assert "hunter2" not in str(vars(record))
        assert token not in str(vars(record))


async def test_whatever_is_logged_for_a_request_has_its_id(
    app: FastAPI, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise RuntimeError

    app.add_api_route("/fail", fail)
    problems.check(await client.get("/fail", headers={"X-Request-ID": "mine"}), 500)
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert vars(record)["request_id"] == "mine"


@pytest.mark.parametrize("changes", [{"docs_enabled": False}])
async def test_the_documentation_can_be_switched_off(client: httpx.AsyncClient) -> None:
    for path in ("/docs", "/redoc", "/openapi.json", "/docs/swagger-ui.css"):
        problems.check(await client.get(path), 404)


def test_a_log_line_is_json_or_text_with_the_request_id() -> None:
    token = request_ids.current.set("mine")
    try:
        record = logs.make_record("access", logging.INFO, "x.py", 1, "GET %s", ("/",), None)
    finally:
        request_ids.current.reset(token)
    record.status = 200
    entry = json.loads(logs.JsonFormatter().format(record))
    assert (entry["message"], entry["request_id"], entry["status"]) == ("GET /", "mine", 200)
    assert logs.TextFormatter().format(record).endswith("Z INFO access: GET / [mine]")
    outside = logs.make_record("main", logging.INFO, "x.py", 1, "started", (), None)
    assert "request_id" not in json.loads(logs.JsonFormatter().format(outside))
    assert logs.TextFormatter().format(outside).endswith("Z INFO main: started")
