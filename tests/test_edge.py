"""What every request passes and every answer has: ids, headers, limits, and lines in the log."""

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app import logs, request_ids
from app.database import Database
from routers.edge import ANONYMOUS_BODY_BYTES
from tests import accounts, problems
from tests.accounts import PASSWORD, SECRET_KEY

LIMIT = 300_000
JSON = {"Content-Type": "application/json"}


@pytest.fixture(params=["sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """The edge does not depend on the database."""
    return str(request.param)


@pytest.fixture
def changes() -> dict[str, Any]:
    """Of settings; a parameter of a test's own sets others."""
    return {"max_body_bytes": LIMIT}


@pytest.fixture
def app_settings(database_url: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The settings of the application under test."""
    return {"database_url": database_url, "secret_key": SECRET_KEY, **changes}


async def chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 1000):
        yield b" " * 1000


def body_of(size: int) -> bytes:
    body = json.dumps({"message": "Hi", "stream": False}).encode()
    return body + b" " * (size - len(body))


async def test_a_body_over_the_limit_is_refused_however_it_comes(client: httpx.AsyncClient, database: Database) -> None:
    headers = (await accounts.add(database, "ayu")).headers | JSON
    assert (await client.post("/chat", headers=headers, content=body_of(LIMIT))).status_code == 200
    problems.check(await client.post("/chat", headers=headers, content=body_of(LIMIT + 1)), 413)
    answer = await client.post("/chat", headers=headers, content=chunks(LIMIT + 1000))
    problems.check(answer, 413)
    assert answer.headers["connection"] == "close", "nobody wants the rest of it"
    announced = headers | {"Content-Length": "9" * 30}
    problems.check(await client.post("/chat", headers=announced, content=b"{}"), 413)
    for odd in ("-1", "x", "1e9", "+1"):
        answer = await client.post("/chat", headers=headers | {"Content-Length": odd}, content=b"{}")
        problems.check(answer, 422)


async def test_whoever_shows_no_token_may_send_less(client: httpx.AsyncClient) -> None:
    for path in ("/auth/register", "/auth/login", "/chat", "/usage/records"):
        for body in (b" " * (ANONYMOUS_BODY_BYTES + 1), chunks(ANONYMOUS_BODY_BYTES + 1000)):
            problems.check(await client.post(path, headers=JSON, content=body), 413)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    problems.check(await client.post("/auth/token", headers=form, content=chunks(ANONYMOUS_BODY_BYTES + 1000)), 413)
    problems.check(await client.post("/auth/login", headers=JSON, content=b" " * ANONYMOUS_BODY_BYTES), 422)


async def test_every_operation_with_a_body_documents_the_limit(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    operations = [(path, operation) for path, methods in paths.items() for operation in methods.values()]
    with_body = {path for path, operation in operations if "requestBody" in operation}
    assert with_body == {path for path, operation in operations if "413" in operation["responses"]} != set()


BODIES = {
    "text/plain": b'{"message": "Hi"}',
    "application/xml": b"<message>Hi</message>",
    "application/json; charset=utf-16": b'{"message": "Hi"}',
    "application/octet-stream": b"\x00\xff",
    "multipart/form-data": b"--x\r\n",
    "multipart/form-data; boundary=x": b"--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n--x--\r\n",
    "multipart/form-data; boundary=": b"x",
    "application/x-www-form-urlencoded": b"username=%00&password=%ff&grant_type=%ed%a0%80",
    "application/x-www-form-urlencoded; charset=nonsense": b"=&=&&;",
    "": b'{"message": "Hi"}',
    "\u00ff/\u00fe": b"{}",
    "application/json": b'{"a":' * 20_000,
}


async def test_a_body_of_a_wrong_or_odd_kind_is_never_our_error(client: httpx.AsyncClient, database: Database) -> None:
    caller = await accounts.add(database, "ayu", "service")
    for path in ("/auth/register", "/auth/login", "/auth/token", "/chat", "/usage/records"):
        for kind, body in BODIES.items():
            headers = [(b"authorization", caller.headers["Authorization"].encode()), (b"content-type", kind.encode())]
            answer = await client.post(path, headers=headers, content=body)
            assert answer.status_code in (200, 401, 422), f"{path} {kind}: {answer.text}"
            if answer.status_code != 200:
                problems.check(answer, answer.status_code)


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


async def test_each_request_is_one_line_of_the_log_with_no_secret_in_it(
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


def test_a_line_of_the_log_is_one_object_or_one_line_with_the_id_of_its_request() -> None:
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
