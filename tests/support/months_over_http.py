"""What the users of an old database see of their usage: `GET /auth/me`, page by page."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, tzinfo
from typing import Any, TypeVar

import httpx

from app.settings import Settings
from main import create_app
from tests.support.accounts import SECRET_KEY, Caller
from tests.support.old_databases import IDLE_USER, USERS, OldDatabase, username

T = TypeVar("T")
Seen = dict[tuple[int, str], tuple[int, int, int, float, int]]

_KEYS = {"month", "input_tokens", "output_tokens", "total_tokens", "total_cost", "message_count"}


def expected(old: OldDatabase, zone: tzinfo = UTC) -> Seen:
    """What they must see; `total_cost` is the float nearest to the exact cost."""
    return {
        key: (month.input_tokens, month.output_tokens, sum(month[:2]), float(month.cost), month.messages)
        for key, month in old.months(zone).items()
    }


def from_server(address: str) -> Seen:
    """What everyone sees on a server."""

    async def fetch() -> Seen:
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as client:
            return await everyone(client)

    return asyncio.run(fetch())


def from_database(url: str) -> Seen:
    """What everyone sees with the application on this database, started in this process."""
    return in_application(url, everyone)


def in_application(url: str, work: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
    """Does something with a client of the application on this database, started in this process."""

    async def start_and_work() -> T:
        app = create_app(Settings.load(database_url=url, secret_key=SECRET_KEY))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await work(client)

    return asyncio.run(start_and_work())


async def everyone(client: httpx.AsyncClient) -> Seen:
    """All months of all users."""
    seen: Seen = {}
    for user in (*USERS, IDLE_USER):
        seen |= await of_user(client, user)
    return seen


async def of_user(client: httpx.AsyncClient, user: int, limit: int = 20) -> Seen:
    """All months of one user; while there may be more with every page, ask for one page."""
    return {
        (user, month["month"]): (
            month["input_tokens"],
            month["output_tokens"],
            month["total_tokens"],
            month["total_cost"],
            month["message_count"],
        )
        for month in await _months(client, user, limit)
    }


async def _months(client: httpx.AsyncClient, user: int, limit: int) -> list[dict[str, Any]]:
    months: list[dict[str, Any]] = []
    page: dict[str, str] = {"limit": str(limit)}
    while True:
        answer = await client.get("/auth/me", params=page, headers=Caller(user, username(user)).headers)
        assert answer.status_code == 200, answer.text
        stats = answer.json()["token_stats"]
        months += stats["monthly_stats"]
        if not stats["has_more"]:
            break
        page["before"] = months[-1]["month"]
    assert all(month.keys() == _KEYS for month in months)
    assert [month["month"] for month in months] == sorted({month["month"] for month in months}, reverse=True)
    assert stats["total_months"] == len(months)
    return months
