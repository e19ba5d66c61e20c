"""Who may do what: every endpoint, for everyone who could call it."""

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts
from sqlalchemy import update

from app.db.database import Database
from app.security import passwords
from models import User
from services.accounts import api_keys
from tests.support import accounts, problems
from tests.support.accounts import PASSWORD

CALLERS = ("nobody", "user", "service", "admin", "key of a service", "inactive admin", "logged out admin")
_ALL = len(CALLERS)

TABLE = {
    # What each caller is answered, in the order of CALLERS: 2xx, 404 or 422 shows that they got through.
    ("GET", "/health"): (200,) * _ALL,
    ("GET", "/ready"): (200,) * _ALL,
    ("GET", "/docs"): (200,) * _ALL,
    ("GET", "/docs/{name}"): (200,) * _ALL,
    ("GET", "/redoc"): (200,) * _ALL,
    ("GET", "/"): (307,) * _ALL,
    ("GET", "/app"): (200,) * _ALL,
    ("GET", "/app/"): (307,) * _ALL,
    ("GET", "/app/files/{name:path}"): (404,) * _ALL,
    ("POST", "/app/session"): (422,) * _ALL,
    ("POST", "/app/session/refresh"): (204,) * _ALL,
    ("DELETE", "/app/session"): (204,) * _ALL,
    ("GET", "/metrics"): (200,) * _ALL,
    ("GET", "/openapi.json"): (200,) * _ALL,
    ("POST", "/auth/register"): (422,) * _ALL,
    ("POST", "/auth/login"): (422,) * _ALL,
    ("POST", "/auth/token"): (422,) * _ALL,
    ("POST", "/auth/refresh"): (422,) * _ALL,
    ("POST", "/auth/logout"): (401, 204, 204, 204, 401, 401, 401),
    ("POST", "/auth/password"): (401, 422, 422, 422, 401, 401, 401),
    ("GET", "/auth/reset-password"): (200,) * _ALL,
    ("POST", "/auth/reset-password"): (422,) * _ALL,
    ("GET", "/auth/me"): (401, 200, 200, 200, 401, 401, 401),
    ("GET", "/auth/token-stats/monthly/{year}/{month}/daily"): (401, 200, 200, 200, 401, 401, 401),
    ("GET", "/auth/token-stats/daily/{date}/conversations"): (401, 200, 200, 200, 401, 401, 401),
    ("GET", "/auth/token-stats/daily"): (401, 200, 200, 200, 401, 401, 401),
    ("GET", "/auth/token-stats/models"): (401, 200, 200, 200, 401, 401, 401),
    ("POST", "/chat"): (401, 200, 200, 200, 401, 401, 401),
    ("POST", "/chat/{message_id}/stop"): (401, 404, 404, 404, 401, 401, 401),
    ("PUT", "/messages/{message_id}"): (401, 404, 404, 404, 401, 401, 401),
    ("GET", "/conversations/{conversation_id}/branches"): (401, 404, 404, 404, 401, 401, 401),
    ("POST", "/conversations/{conversation_id}/branches/{branch_id}/activate"): (401, 404, 404, 404, 401, 401, 401),
    ("GET", "/conversations"): (401, 200, 200, 200, 401, 401, 401),
    ("GET", "/conversations/{conversation_id}"): (401, 404, 404, 404, 401, 401, 401),
    ("DELETE", "/conversations/{conversation_id}"): (401, 404, 404, 404, 401, 401, 401),
    ("GET", "/preferences"): (401, 200, 200, 200, 401, 401, 401),
    ("PUT", "/preferences"): (401, 200, 200, 200, 401, 401, 401),
    ("POST", "/feedback"): (401, 404, 404, 404, 401, 401, 401),
    ("GET", "/feedback/message/{message_id}"): (401, 404, 404, 404, 401, 401, 401),
    ("DELETE", "/feedback/{feedback_id}"): (401, 404, 404, 404, 401, 401, 401),
    ("GET", "/uploads/images/{file}"): (404,) * _ALL,
    ("GET", "/models"): (401, 200, 200, 200, 401, 401, 401),
    ("GET", "/models/search"): (401, 200, 200, 200, 401, 401, 401),
    ("GET", "/models/{model_id:path}"): (401, 404, 404, 404, 401, 401, 401),
    ("GET", "/user-model-categories"): (401, 200, 200, 200, 401, 401, 401),
    ("POST", "/user-model-categories"): (401, 200, 200, 200, 401, 401, 401),
    ("PUT", "/user-model-categories/{category_id}"): (401, 404, 404, 404, 401, 401, 401),
    ("DELETE", "/user-model-categories/{category_id}"): (401, 404, 404, 404, 401, 401, 401),
    ("GET", "/user-model-categories/{category_name:path}/pricing-info"): (401, 404, 404, 404, 401, 401, 401),
    ("POST", "/user-model-categories/estimate-cost"): (401, 200, 200, 200, 401, 401, 401),
    ("GET", "/auth/users"): (401, 403, 403, 200, 401, 401, 401),
    ("PUT", "/auth/users/{user_id}"): (401, 403, 403, 404, 401, 401, 401),
    ("DELETE", "/auth/users/{user_id}"): (401, 403, 403, 404, 401, 401, 401),
    ("POST", "/usage/records"): (401, 403, 200, 200, 200, 401, 401),
    ("GET", "/admin/users"): (401, 403, 403, 200, 401, 401, 401),
    ("POST", "/admin/users/{user_id}/deactivate"): (401, 403, 403, 404, 401, 401, 401),
    ("POST", "/admin/users/{user_id}/activate"): (401, 403, 403, 404, 401, 401, 401),
    ("POST", "/admin/users/{user_id}/reset-password"): (401, 403, 403, 404, 401, 401, 401),
    ("DELETE", "/admin/users/{user_id}"): (401, 403, 403, 404, 401, 401, 401),
    ("GET", "/admin/health"): (401, 403, 403, 200, 401, 401, 401),
    ("GET", "/admin/usage"): (401, 403, 403, 200, 401, 401, 401),
    ("GET", "/admin/token-stats/daily"): (401, 403, 403, 200, 401, 401, 401),
    ("GET", "/admin/token-stats/models"): (401, 403, 403, 200, 401, 401, 401),
    ("GET", "/admin/users/{user_id}/token-stats/daily"): (401, 403, 403, 404, 401, 401, 401),
    ("GET", "/admin/users/{user_id}/token-stats/models"): (401, 403, 403, 404, 401, 401, 401),
    ("GET", "/admin/users/{user_id}/token-stats/daily/{date}/conversations"): (401, 403, 403, 404, 401, 401, 401),
}
"""A new endpoint belongs here."""

PARAMETERS = {
    "name:path": "x",
    "year": "2024",
    "month": "12",
    "date": "2024-12-24",
    "conversation_id": "x",
    "branch_id": "y",
    "user_id": str(2**31 - 1),
    "message_id": str(2**63 - 1),
    "feedback_id": str(2**63 - 1),
    "category_id": str(2**63 - 1),
    "category_name:path": "none",
    "model_id:path": "x",
    "name": "swagger-ui.css",
    "file": "a.png",
}
RECORD = {"id": "one", "user_id": 1, "model": "gpt-4o", "input_tokens": 1, "output_tokens": 1}
BODIES = {
    "/auth/password": {"current_password": PASSWORD, "new_password": "password1"},
    "/auth/users/{user_id}": {"role": "user"},
    "/chat": {"message": "hello", "stream": False},
    "/messages/{message_id}": {"content": "hello"},
    "/feedback": {"message_id": 2**63 - 1, "feedback_type": "like"},
    "/preferences": {"nickname": "Ayu"},
    "/usage/records": {"records": [RECORD]},
    "/user-model-categories": {"category_name": "x", "display_name": "x", "model_id": "openai/gpt-4o"},
    "/user-model-categories/estimate-cost": {"model_id": "openai/gpt-4o", "prompt_tokens": 1},
}


@pytest.fixture
async def headers(client: httpx.AsyncClient, database: Database) -> Callable[[str], dict[str, str]]:
    """What a caller sends to say who they are; a new token each time, but for the one that was logged out."""
    roles = {"user": "user", "service": "service", "admin": "admin", "gone": "admin", "out": "admin"}
    users = {name: await accounts.add(database, name, role) for name, role in roles.items()}
    hashed = await passwords.hash_password(PASSWORD)
    async with database.sessions.begin() as session:
        await session.execute(update(User).values(hashed_password=hashed))
        await session.execute(update(User).where(User.id == users["gone"].id).values(is_active=False))
        key = (await api_keys.issue(session, "service", "of the tests")).key
    out = users["out"].headers
    assert (await client.post("/auth/logout", headers=out)).status_code == 204
    fixed: dict[str, dict[str, str]] = {
        "nobody": {},
        "key of a service": {"Authorization": f"Bearer {key}"},
        "logged out admin": out,
    }
    return lambda caller: fixed[caller] if caller in fixed else users[caller.replace("inactive admin", "gone")].headers


def endpoints(app: FastAPI) -> set[tuple[str, str]]:
    """Every endpoint there is, whether or not it is documented; what is mounted counts as one of any method."""
    found = set()
    for route in iter_route_contexts(app.routes):
        for method in route.methods or {"ANY"}:
            found.add((method, str(route.path)))
    return {(method, path) for method, path in found if method != "HEAD"}


@pytest.mark.any_database
async def test_every_endpoint_is_in_the_table(app: FastAPI) -> None:
    assert endpoints(app) == set(TABLE)
    hidden = APIRouter(prefix="/hidden")
    hidden.add_api_route("/thing", lambda: None, methods=["PUT"], include_in_schema=False)
    app.include_router(hidden)
    assert endpoints(app) - set(TABLE) == {("PUT", "/hidden/thing")}, "none can be added unseen"


@pytest.mark.any_database
async def test_everybody_may_do_just_what_the_table_says(
    client: httpx.AsyncClient, headers: Callable[[str], dict[str, str]]
) -> None:
    found: dict[tuple[str, str], list[int]] = {}
    for method, path in TABLE:
        query = {"month": "2024-12"} if path == "/admin/usage" else None
        body: Any = BODIES.get(path, {}) if method in ("POST", "PUT") else None
        for caller in CALLERS:
            url = re.sub(r"{([^}]+)}", lambda match: PARAMETERS[match[1]], path)
            answer = await client.request(method, url, headers=headers(caller), json=body, params=query)
            found.setdefault((method, path), []).append(answer.status_code)
            if answer.status_code in (401, 403):
                problems.check(answer, answer.status_code)
    assert {endpoint: tuple(codes) for endpoint, codes in found.items()} == TABLE
