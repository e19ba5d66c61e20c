"""`/docs` and `/redoc` from the installation itself, under a policy that allows no other host."""

import hashlib
import re
from pathlib import Path

import httpx
import pytest

from tests.support import browser, commands

SWAGGER_UI_5_34_0 = {
    "swagger-ui-bundle.js": "3f6abf70480db7e07914df4c98a77385f22ea585eaf457a3e6415ba0eae2d167",
    "swagger-ui.css": "c3cfe8248c4b0b89673600fb829924eafbac6de4bc4b2b06f5f5243483074d0a",
    "favicon-32x32.png": "3ed612f41e050ca5e7000cad6f1cbe7e7da39f65fca99c02e99e6591056e5837",
}
"""SHA-256 of the files in the npm package `swagger-ui-dist` of that version."""

TYPES = {"js": "text/javascript", "css": "text/css", "png": "image/png"}


@pytest.fixture(params=["sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """The page does not depend on the database."""
    return str(request.param)


async def page(client: httpx.AsyncClient) -> httpx.Response:
    answer = await client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    return answer


async def test_the_page_names_no_other_host(client: httpx.AsyncClient) -> None:
    answer = await page(client)
    assert "http" not in answer.text
    assert re.findall(r"""(?:src|href)=["'](?!docs/)""", answer.text) == []


async def test_the_policy_allows_this_host_alone(client: httpx.AsyncClient) -> None:
    policy = (await page(client)).headers["content-security-policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    for name, sources in directives.items():
        for source in sources.split():
            assert source in ("'self'", "'none'", "data:") or source.startswith("'sha256-"), f"{name} {source}"
    assert "data:" not in directives["script-src"]


async def test_each_asset_is_served_and_cached_for_good(client: httpx.AsyncClient) -> None:
    text = (await page(client)).text
    urls = re.findall(r"""(?:src|href)=["'](docs/[^"']+)""", text)
    assert {url.split("/")[1].split("?")[0] for url in urls} == set(SWAGGER_UI_5_34_0)
    for url in urls:
        answer = await client.get(f"/{url}")
        name = url.split("/")[1].split("?")[0]
        assert answer.status_code == 200, url
        assert answer.headers["content-type"].split(";")[0] == TYPES[name.rpartition(".")[2]]
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert re.search(r"\?v=[\w.]+$", url), "another version has another address"
        assert hashlib.sha256(answer.content).hexdigest() == SWAGGER_UI_5_34_0[name]


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/favicon-32x32.png"])
async def test_head_has_the_headers_of_get(client: httpx.AsyncClient, path: str) -> None:
    head, get = await client.head(path), await client.get(path)
    assert head.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]


async def test_there_are_no_other_files_below_the_page(client: httpx.AsyncClient) -> None:
    for name in ("__init__.py", "..%2f__init__.py", "swagger-ui.css.map", "%2e%2e/main.py", "x"):
        assert (await client.get(f"/docs/{name}")).status_code == 404, name


@pytest.mark.long
@browser.needed
def test_the_page_works_in_a_browser_without_internet(database_url: str, tmp_path: Path) -> None:
    with commands.server(database_url, tmp_path) as address:
        shown, console = browser.browse(f"{address}/docs", tmp_path)
    assert console == [], "nothing was blocked, missing or wrong"
    for text in ("/auth/register", "/chat", "/usage/records", "Authorize"):
        assert text in shown
    assert 'class="opblock opblock-post"' in shown


async def test_redoc_names_no_other_host(client: httpx.AsyncClient) -> None:
    answer = await client.get("/redoc")
    assert "http" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert "http" not in policy
    assert "script-src 'self';" in policy


@pytest.mark.long
@browser.needed
def test_redoc_works_in_a_browser_without_internet(database_url: str, tmp_path: Path) -> None:
    with commands.server(database_url, tmp_path) as address:
        shown, console = browser.browse(f"{address}/redoc", tmp_path)
    assert console == [], "nothing was blocked, missing or wrong"
    for text in ("/auth/register", "/chat", "/usage/records"):
        assert text in shown
