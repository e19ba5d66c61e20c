"""`CORS_ORIGINS`: which pages of browsers may call."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from routers.http import edge
from tests.support import accounts, problems
from tests.support.accounts import SECRET_KEY

OURS = "https://app.example.com"
OTHER = "https://evil.example.com"
CORS_HEADERS = ("access-control-allow-origin", "access-control-allow-credentials")


@pytest.fixture(params=["sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """Origins do not depend on the database."""
    return str(request.param)


@pytest.fixture
def origins() -> str:
    """`CORS_ORIGINS`."""
    return f" {OURS}/ , http://localhost:3000"


@pytest.fixture
def app_settings(database_url: str, origins: str) -> dict[str, Any]:
    """The settings of the application under test."""
    return {"database_url": database_url, "secret_key": SECRET_KEY, "cors_origins": origins}


async def preflight(client: httpx.AsyncClient, origin: str, method: str = "POST") -> httpx.Response:
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "authorization,content-type"}
    return await client.options("/usage/records", headers={"Origin": origin, **asked})


async def test_the_origins_that_are_listed_may_call(client: httpx.AsyncClient) -> None:
    for origin in (OURS, "http://localhost:3000"):
        answer = await preflight(client, origin)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert "POST" in answer.headers["access-control-allow-methods"]
        allowed = answer.headers["access-control-allow-headers"].lower()
        assert "authorization" in allowed
        assert "content-type" in allowed
        answer = await client.get("/health", headers={"Origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin
        assert "Origin" in answer.headers["vary"]


async def test_other_origins_may_not(client: httpx.AsyncClient) -> None:
    similar = (OTHER, "http://app.example.com", f"{OURS}.evil.com", f"{OURS}:444", "null", "https://example.com")
    for origin in similar:
        assert "access-control-allow-origin" not in (await preflight(client, origin)).headers
        answer = await client.get("/health", headers={"Origin": origin})
        assert "access-control-allow-origin" not in answer.headers


async def test_pages_can_read_errors_and_their_headers(client: httpx.AsyncClient) -> None:
    answer = await client.get("/auth/me", headers={"Origin": OURS})
    problems.check(answer, 401)
    assert answer.headers["access-control-allow-origin"] == OURS
    exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
    assert {"www-authenticate", "content-disposition"} <= set(exposed)
    caller = accounts.Caller(1, "ayu")
    answer = await client.get("/auth/me", params={"limit": 0}, headers={"Origin": OURS, **caller.headers})
    problems.check(answer, 422)
    assert answer.headers["access-control-allow-origin"] == OURS


async def test_pages_can_read_errors_that_nobody_expected(app: FastAPI, client: httpx.AsyncClient) -> None:
    async def fail() -> None:
        raise RuntimeError

    app.add_api_route("/fail", fail)
    answer = await client.get("/fail", headers={"Origin": OURS})
    problems.check(answer, 500)
    assert answer.headers["access-control-allow-origin"] == OURS
    answer = await client.get("/fail", headers={"Origin": OTHER})
    problems.check(answer, 500)
    assert "access-control-allow-origin" not in answer.headers


async def test_pages_can_read_that_a_body_is_too_large(client: httpx.AsyncClient) -> None:
    answer = await client.post("/auth/login", headers={"Origin": OURS}, content=b"x" * 300_000)
    problems.check(answer, 413)
    assert answer.headers["access-control-allow-origin"] == OURS


async def test_a_refused_preflight_is_a_problem(client: httpx.AsyncClient) -> None:
    answer = await preflight(client, OTHER)
    assert "origin" in problems.check(answer, 400)["detail"]
    assert "access-control-allow-origin" not in answer.headers
    assert "Origin" in answer.headers["vary"]
    answer = await preflight(client, OURS, method="FLY")
    assert "method" in problems.check(answer, 400)["detail"]


@pytest.mark.parametrize("origins", ["*", f"{OURS},*"])
async def test_all_origins_may_call_only_without_credentials(client: httpx.AsyncClient) -> None:
    cookies = {"Cookie": "session=1"}
    for origin in (OURS, OTHER):
        for answer in (
            await preflight(client, origin),
            await client.get("/health", headers={"Origin": origin}),
            await client.get("/health", headers={"Origin": origin, **cookies}),
        ):
            assert answer.headers["access-control-allow-origin"] in ("*", origin)
            assert "access-control-allow-credentials" not in answer.headers
    assert (await preflight(client, OTHER)).headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("origins", ["", " , "])
async def test_without_origins_no_page_may_call(client: httpx.AsyncClient) -> None:
    for answer in (await preflight(client, OURS), await client.get("/health", headers={"Origin": OURS})):
        assert [name for name in CORS_HEADERS if name in answer.headers] == []


def reported(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "CORS_ORIGINS" in record.getMessage()]


@pytest.mark.parametrize(("origins", "refused"), [("", [OTHER, OURS]), (OURS, [OTHER]), ("*", [])])
async def test_the_log_names_each_refused_origin_once(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, refused: list[str]
) -> None:
    for origin in (OTHER, OURS, OTHER, "http://test"):
        await preflight(client, origin)
        await client.get("/health", headers={"Origin": origin})
    assert [[origin for origin in (OTHER, OURS) if origin in line] for line in reported(caplog)] == [
        [origin] for origin in refused
    ]


async def test_origins_that_callers_invent_do_not_fill_the_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2 * edge.MAX_ORIGINS):
        await client.get("/health", headers={"Origin": f"https://{number}.example.com{'x' * 200}"})
    lines = reported(caplog)
    assert len(lines) == edge.MAX_ORIGINS
    assert all(len(line) < 200 for line in lines)
