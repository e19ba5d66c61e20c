"""The frontend's paths are answered with a trailing slash directly: a redirect would lose credentials."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.support import problems
from tests.support.accounts import Caller


@pytest.fixture(params=["sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """Paths do not depend on the database."""
    return str(request.param)


@pytest.mark.parametrize("path", ["/conversations", "/auth/me", "/auth/token-stats/monthly/2024/12/daily"])
async def test_a_trailing_slash_changes_nothing(client: httpx.AsyncClient, ayu: Caller, path: str) -> None:
    plain = await client.get(path, headers=ayu.headers, params={"limit": 12})
    slashed = await client.get(f"{path}/", headers=ayu.headers, params={"limit": 12})
    assert plain.status_code == slashed.status_code == 200
    assert plain.json() == slashed.json()


async def test_bodies_reach_a_path_with_a_slash(client: httpx.AsyncClient, ayu: Caller) -> None:
    body: dict[str, Any] = {"message": "Hi", "stream": False}
    answer = await client.post("/chat/", headers=ayu.headers, json=body)
    assert answer.status_code == 200
    id_ = answer.json()["conversation_id"]
    assert (await client.delete(f"/conversations/{id_}/", headers=ayu.headers)).status_code == 204


async def test_no_other_path_gains_a_route(app: FastAPI, client: httpx.AsyncClient, ayu: Caller) -> None:
    for path in ("/conversations//", "/%2fconversations", "/nowhere/", "/auth/me//", "/auth/me%2f", "/metrics/"):
        problems.check(await client.get(path, headers=ayu.headers), 404)
