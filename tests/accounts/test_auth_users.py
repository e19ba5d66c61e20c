"""Users under the earlier backend's addresses, for admins."""

import asyncio
from typing import Any

import httpx
import pytest

from app.db.database import Database
from tests.support import accounts, problems
from tests.support.accounts import PASSWORD, Caller

NEW_PASSWORD = "a battery for every correct horse"


pytestmark = pytest.mark.usefixtures("failed_logins_are_short")


async def test_users_are_listed_from_an_offset(
    client: httpx.AsyncClient, admin: Caller, ayu: Caller, bela: Caller
) -> None:
    listed = (await client.get("/auth/users", headers=admin.headers)).json()
    assert sorted(user["id"] for user in listed) == sorted((admin.id, ayu.id, bela.id))
    assert all(set(user) == {"id", "username", "email", "role", "is_active"} for user in listed)
    page = await client.get("/auth/users/", params={"skip": 1, "limit": 1}, headers=admin.headers)
    assert page.json() == listed[1:2]


async def test_a_role_changes_at_once(client: httpx.AsyncClient, admin: Caller, ayu: Caller) -> None:
    for role, status in (("admin", 200), ("user", 403)):
        changed = await client.put(f"/auth/users/{ayu.id}", json={"role": role}, headers=admin.headers)
        assert (changed.status_code, changed.json()["role"]) == (200, role)
        assert (await client.get("/auth/users", headers=ayu.headers)).status_code == status


async def test_a_new_password_ends_every_login(client: httpx.AsyncClient, admin: Caller) -> None:
    user = await accounts.register(client, "ayu")
    changed = await client.put(f"/auth/users/{user.id}", json={"password": NEW_PASSWORD}, headers=admin.headers)
    assert changed.status_code == 200
    problems.check(await client.get("/auth/me", headers=user.headers), 401)
    for password, status in ((PASSWORD, 401), (NEW_PASSWORD, 200)):
        answer = await client.post("/auth/login", json={"username": "ayu", "password": password})
        assert answer.status_code == status


@pytest.mark.any_database
@pytest.mark.parametrize(
    "body", [{"role": "owner"}, {"role": "service"}, {"password": "password1"}, {"password": "x"}, {"is_active": False}]
)
async def test_what_cannot_be_changed_is_refused(
    client: httpx.AsyncClient, admin: Caller, ayu: Caller, body: dict[str, Any]
) -> None:
    problems.check(await client.put(f"/auth/users/{ayu.id}", json=body, headers=admin.headers), 422)


async def test_admins_cannot_demote_or_delete_themselves(client: httpx.AsyncClient, admin: Caller) -> None:
    path = f"/auth/users/{admin.id}"
    problems.check(await client.put(path, json={"role": "user"}, headers=admin.headers), 409)
    problems.check(await client.delete(path, headers=admin.headers), 409)
    assert (await client.get("/auth/users", headers=admin.headers)).status_code == 200


async def test_a_deleted_user_is_gone(client: httpx.AsyncClient, admin: Caller, ayu: Caller) -> None:
    deleted = await client.delete(f"/auth/users/{ayu.id}", headers=admin.headers)
    assert (deleted.status_code, set(deleted.json())) == (200, {"message"})
    problems.check(await client.get("/auth/me", headers=ayu.headers), 401)
    problems.check(await client.delete(f"/auth/users/{ayu.id}", headers=admin.headers), 404)
    problems.check(await client.put(f"/auth/users/{ayu.id}", json={"role": "user"}, headers=admin.headers), 404)


@pytest.mark.parametrize("way", ["demote", "delete", "deactivate"])
async def test_two_admins_cannot_remove_each_other(client: httpx.AsyncClient, database: Database, way: str) -> None:
    async def remove(caller: Caller, user: Caller) -> httpx.Response:
        if way == "delete":
            return await client.delete(f"/auth/users/{user.id}", headers=caller.headers)
        if way == "deactivate":
            return await client.post(f"/admin/users/{user.id}/deactivate", headers=caller.headers)
        return await client.put(f"/auth/users/{user.id}", json={"role": "user"}, headers=caller.headers)

    for pair in range(5):
        one, other = [await accounts.add(database, f"{name}{pair}", role="admin") for name in ("one", "other")]
        answers = await asyncio.gather(remove(one, other), remove(other, one))
        assert sorted(answer.status_code for answer in answers) in ([200, 401], [200, 403])
