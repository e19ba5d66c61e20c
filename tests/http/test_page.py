"""`/app` over HTTP: its files, its login in a cookie, and what other sites may not do with it."""

import hashlib
import re
from datetime import timedelta

import httpx
import pytest

from app import BASE_DIR, clock
from routers import page
from tests.support import accounts, problems
from tests.support.accounts import PASSWORD

pytestmark = pytest.mark.any_database

WEB = BASE_DIR / "routers" / "web"
LIBRARIES = {
    "chart.js": "c17f2ce49fb9c71ef7fb39c03f868804ac5ab34730149976eebe6b7f807bef0c",
    "redoc.js": "f8eb4fc7a77cec6a4d2c51ac9b1c763053e923ed719b03ab0c396eb38f975327",
}
"""SHA-256 of what `tools/page_libraries.py` makes of the packages of npm."""

LOGIN = {"username": "ayu", "password": PASSWORD}
SESSION = "/app/session"


@pytest.fixture
async def ayu(client: httpx.AsyncClient) -> accounts.Caller:
    """A user with a password."""
    return await accounts.register(client, "ayu")


async def log_in(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await client.post(SESSION, json=LOGIN, headers=headers)


def token_in(answer: httpx.Response) -> str:
    """The refresh token in the cookie of an answer, whose attributes are checked."""
    token, *attributes = answer.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "Path=/", "SameSite=strict", "Secure"} < set(attributes)
    name, _, value = token.partition("=")
    assert name == page.COOKIE
    return str(value)


async def refresh(client: httpx.AsyncClient, token: str, **headers: str) -> httpx.Response:
    return await client.post(f"{SESSION}/refresh", headers={"Cookie": f"{page.COOKIE}={token}", **headers})


async def test_the_root_leads_to_the_page(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "app")
    answer = await client.get("/app/")
    assert (answer.status_code, answer.headers["location"]) == (307, "../app")
    for path in ("/", "/app", "/app/files/main.js"):
        assert (await client.head(path)).status_code == (await client.get(path)).status_code


async def test_the_page_and_its_files_name_no_other_host(client: httpx.AsyncClient) -> None:
    shown = await client.get("/app")
    policy = shown.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    loaded = re.findall(r'(?:src|href)="(app/[^"]+)"', shown.text)
    assert len(loaded) == 3
    for file in loaded:
        assert (await client.get(f"/{file}")).status_code == 200
    for file in WEB.glob("*.*"):
        assert "://" not in file.read_text(encoding="utf-8"), file.name


async def test_files_are_served_with_their_types(client: httpx.AsyncClient) -> None:
    for name, kind in (
        ("main.js", "text/javascript"),
        ("style.css", "text/css"),
        ("vendor/chart.js", "text/javascript"),
    ):
        answer = await client.get(f"/app/files/{name}")
        assert answer.headers["content-type"].split(";")[0] == kind
        assert answer.headers["cache-control"] == "no-cache"
        same = await client.get(f"/app/files/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert same.status_code == 304
    for name, digest in LIBRARIES.items():
        library = (await client.get(f"/app/files/vendor/{name}")).content
        assert hashlib.sha256(library).hexdigest() == digest


@pytest.mark.parametrize("path", ["/app", "/app/files/main.js", "/docs/swagger-ui.css"])
@pytest.mark.parametrize("wanted", ["lines=1-2", "bytes=5-2", "bytes=99999999-", "bytes=0-9", "x"])
@pytest.mark.sampled(4)
async def test_files_are_sent_whole_or_not_at_all(client: httpx.AsyncClient, path: str, wanted: str) -> None:
    whole = await client.get(path)
    assert whole.headers["accept-ranges"] == "none"
    part = await client.get(path, headers={"Range": wanted})
    assert (part.status_code, part.content) == (200, whole.content)
    same = await client.get(path, headers={"If-None-Match": whole.headers["etag"], "Range": wanted})
    assert same.status_code == (200 if path.startswith("/docs") else 304)  # those are kept for good


@pytest.mark.parametrize(
    "name", ["", "x", "vendor", "../page.py", "%2e%2e/page.py", "..%2fpage.py", "a%00b", "/etc/passwd"]
)
async def test_there_are_no_other_files(client: httpx.AsyncClient, name: str) -> None:
    problems.check(await client.get(f"/app/files/{name}"), 404)


async def me(client: httpx.AsyncClient, answer: httpx.Response) -> httpx.Response:
    return await client.get("/auth/me", headers={"Authorization": f"Bearer {answer.json()['access_token']}"})


async def test_a_login_is_kept_in_a_cookie_alone(client: httpx.AsyncClient, ayu: accounts.Caller) -> None:
    begun = await log_in(client)
    assert set(begun.json()) == {"access_token", "token_type", "expires_in"}
    token = token_in(begun)
    for _ in range(3):  # each tab, and each attempt after a lost response
        continued = await refresh(client, token)
        assert token_in(continued) == token
        assert (await me(client, continued)).json()["id"] == ayu.id
    ended = await client.delete(SESSION, headers={"Cookie": f"{page.COOKIE}={token}"})
    assert ended.status_code == 204
    assert token_in(ended) == '""'
    for answer in (begun, continued):
        problems.check(await me(client, answer), 401)
    after = await refresh(client, token)
    assert (after.status_code, token_in(after)) == (204, '""')


async def test_an_access_token_is_replaced_before_it_expires(
    client: httpx.AsyncClient, ayu: accounts.Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = await log_in(client)
    now = clock.now()
    for minutes in (10, 29.9, 35, 60 * 24 * 10, 60 * 24 * 20):
        at = now + timedelta(minutes=minutes)
        monkeypatch.setattr(clock, "now", lambda at=at: at)
        continued = await refresh(client, token_in(begun))
        assert continued.status_code == 200
        assert 10 < continued.json()["expires_in"] <= 30 * 60
    later = clock.now() + timedelta(days=15)
    monkeypatch.setattr(clock, "now", lambda: later)
    assert (await refresh(client, token_in(begun))).status_code == 204, "unused for longer than REFRESH_…_DAYS"


async def test_a_used_refresh_token_continues_no_login(client: httpx.AsyncClient, ayu: accounts.Caller) -> None:
    token = token_in(await log_in(client))
    assert (await client.post("/auth/refresh", json={"refresh_token": token})).status_code == 200
    assert (await refresh(client, token)).status_code == 204


async def test_a_new_password_ends_the_login(client: httpx.AsyncClient, ayu: accounts.Caller) -> None:
    begun = await log_in(client)
    body = {"current_password": PASSWORD, "new_password": "a battery for every correct horse"}
    headers = {"Authorization": f"Bearer {begun.json()['access_token']}"}
    assert (await client.post("/auth/password", json=body, headers=headers)).status_code == 200
    assert (await refresh(client, token_in(begun))).status_code == 204


async def test_a_cookie_is_no_token_of_the_api(client: httpx.AsyncClient, ayu: accounts.Caller) -> None:
    token = token_in(await log_in(client))
    for method, path in (("GET", "/auth/me"), ("POST", "/chat")):
        problems.check(await client.request(method, path, headers={"Cookie": f"{page.COOKIE}={token}"}), 401)


async def test_without_a_cookie_there_is_no_login(client: httpx.AsyncClient) -> None:
    assert (await client.post(f"{SESSION}/refresh")).status_code == 204
    assert (await client.delete(SESSION)).status_code == 204
    for token in ("", "x", "rt_1_unknown", "\xff"):
        headers = [(b"Cookie", f"{page.COOKIE}={token}".encode("latin-1"))]
        assert (await client.post(f"{SESSION}/refresh", headers=headers)).status_code == 204


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://test"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://["},
    ],
)
async def test_other_sites_cannot_use_the_login(
    client: httpx.AsyncClient, ayu: accounts.Caller, headers: dict[str, str]
) -> None:
    begun = await log_in(client)
    token = token_in(begun)
    problems.check(await log_in(client, **headers), 403)
    problems.check(await refresh(client, token, **headers), 403)
    problems.check(await client.delete(SESSION, headers={"Cookie": f"{page.COOKIE}={token}", **headers}), 403)
    assert (await refresh(client, token)).status_code == 200, "the login goes on"


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": "OURS"}])
async def test_the_page_itself_may(client: httpx.AsyncClient, ayu: accounts.Caller, headers: dict[str, str]) -> None:
    ours = {name: str(client.base_url).rstrip("/") if value == "OURS" else value for name, value in headers.items()}
    assert (await refresh(client, token_in(await log_in(client, **ours)), **ours)).status_code == 200
