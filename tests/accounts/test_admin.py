"""Administration: users page by page, who may log in, who is removed, and what all of them used."""

import csv
import io
import re
import unicodedata
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from app.db.database import Database
from models import Message, User
from tests.support import accounts, invariants, problems, records
from tests.support.accounts import PASSWORD, Caller

MONTH = "2024-12"


pytestmark = pytest.mark.usefixtures("failed_logins_are_short")


async def get(client: httpx.AsyncClient, admin: Caller, path: str, **query: Any) -> Any:
    answer = await client.get(f"/admin/{path}", headers=admin.headers, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def log_in(client: httpx.AsyncClient, caller: Caller) -> httpx.Response:
    body = {"username": caller.username, "password": PASSWORD, "scope": "offline_access"}
    return await client.post("/auth/login", json=body)


async def use(client: httpx.AsyncClient, admin: Caller, owner: Caller, tokens: int, cost: str) -> None:
    usage = {"input_tokens": tokens, "output_tokens": 1, "cost": cost, "created_at": f"{MONTH}-15T12:00:00Z"}
    await records.store(client, admin, [records.record(owner, **usage)])


async def test_all_pages_together_are_all_users(client: httpx.AsyncClient, admin: Caller, database: Database) -> None:
    callers = [admin, *[await accounts.add(database, f"user{i}") for i in range(6)]]
    for limit in (1, 3, 7, 100):
        seen: list[dict[str, Any]] = []
        has_more = True
        while has_more:
            page = await get(client, admin, "users", limit=limit, after=seen[-1]["id"] if seen else 0)
            assert 0 < len(page["users"]) <= limit
            seen += page["users"]
            has_more = page["has_more"]
        assert [user["id"] for user in seen] == [caller.id for caller in callers]
    assert set(seen[0]) == {"id", "username", "email", "role", "is_active", "created_at"}
    assert (seen[0]["role"], seen[1]["role"]) == ("admin", "user")
    assert "hash" not in str(seen)


async def test_users_of_an_old_database_are_shown(client: httpx.AsyncClient, admin: Caller, database: Database) -> None:
    old = await accounts.add(database, "old")
    async with database.sessions.begin() as session:
        empty = {"role": None, "is_active": None, "created_at": None}
        await session.execute(update(User).where(User.id == old.id).values(**empty))
    [shown] = (await get(client, admin, "users", after=admin.id))["users"]
    assert (shown["role"], shown["is_active"], shown["created_at"]) == ("user", True, None)


@pytest.mark.any_database
async def test_a_deactivated_user_returns_only_with_the_password(client: httpx.AsyncClient, admin: Caller) -> None:
    ayu = await accounts.register(client, "ayu")
    given = (await log_in(client, ayu)).json()
    headers = {"Authorization": f"Bearer {given['access_token']}"}
    path = f"/admin/users/{ayu.id}"
    for _ in range(2):
        answer = await client.post(f"{path}/deactivate", headers=admin.headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["is_active"] is False
    problems.check(await client.get("/auth/me", headers=headers), 401)
    problems.check(await log_in(client, ayu), 401)
    assert (await client.post(f"{path}/activate", headers=admin.headers)).json()["is_active"] is True
    problems.check(await client.get("/auth/me", headers=headers), 401)
    refreshed = await client.post("/auth/refresh", json={"refresh_token": given["refresh_token"]})
    problems.check(refreshed, 401)
    assert (await log_in(client, ayu)).status_code == 200


async def test_a_deleted_user_is_gone_with_everything(
    client: httpx.AsyncClient, admin: Caller, database: Database
) -> None:
    ayu = await accounts.register(client, "ayu")
    given = (await log_in(client, ayu)).json()
    await client.post("/auth/logout", headers=ayu.headers)
    await use(client, admin, ayu, 10, "0.5")
    await client.post(f"/admin/users/{ayu.id}/reset-password", headers=admin.headers)
    answer = await client.delete(f"/admin/users/{ayu.id}", headers=admin.headers)
    assert answer.status_code == 204, answer.text
    problems.check(await client.delete(f"/admin/users/{ayu.id}", headers=admin.headers), 404)
    headers = {"Authorization": f"Bearer {given['access_token']}"}
    problems.check(await client.get("/auth/me", headers=headers), 401)
    problems.check(await log_in(client, ayu), 401)
    assert (await get(client, admin, "usage", month=MONTH))["users"] == []
    async with database.reads() as session:
        assert await session.scalar(select(func.count()).select_from(Message)) == 0
    again = await accounts.register(client, "ayu")
    assert again.id != ayu.id
    await invariants.check(database)


@pytest.mark.any_database
async def test_who_is_not_there_is_not_found(client: httpx.AsyncClient, admin: Caller) -> None:
    for user_id, status in ((admin.id + 1, 404), (2**31 - 1, 404), (0, 422), (-1, 422), (2**31, 422), ("x", 422)):
        for method, path in (
            ("POST", "/deactivate"),
            ("POST", "/activate"),
            ("POST", "/reset-password"),
            ("DELETE", ""),
        ):
            answer = await client.request(method, f"/admin/users/{user_id}{path}", headers=admin.headers)
            problems.check(answer, status)


async def test_admins_do_not_remove_themselves(client: httpx.AsyncClient, admin: Caller) -> None:
    problems.check(await client.post(f"/admin/users/{admin.id}/deactivate", headers=admin.headers), 409)
    problems.check(await client.delete(f"/admin/users/{admin.id}", headers=admin.headers), 409)
    assert (await client.get("/auth/me", headers=admin.headers)).status_code == 200


@pytest.fixture
async def three(client: httpx.AsyncClient, admin: Caller, database: Database) -> list[Caller]:
    """Users who used something, of names and figures in different orders."""
    callers = [await accounts.add(database, name) for name in ("carla", "ayu", "=1+1")]
    for caller, tokens, cost in zip(callers, (30, 10, 20), ("0.1", "0.0000000003", "123456.7000000001"), strict=True):
        await use(client, admin, caller, tokens, cost)
    other = {"created_at": "2024-11-30T23:59:59Z"}
    await records.store(client, admin, [records.record(callers[0], **other), records.record(admin, **other)])
    return callers


async def test_the_usage_of_a_month_is_each_users_month(
    client: httpx.AsyncClient, admin: Caller, three: list[Caller]
) -> None:
    shown = await get(client, admin, "usage", month=MONTH)
    assert [user["username"] for user in shown["users"]] == ["=1+1", "carla", "ayu"], "the dearest first"
    assert {**shown, "users": None} == {
        "month": MONTH,
        "users": None,
        "page": 1,
        "limit": 100,
        "total_users": 3,
        "has_more": False,
    }
    for caller in three:
        me = (await client.get("/auth/me", headers=caller.headers)).json()["token_stats"]["monthly_stats"][0]
        [mine] = [user for user in shown["users"] if user["user_id"] == caller.id]
        del me["month"]
        flags = {"unpriced_count": 0, "estimated_count": 0}
        assert mine == {"user_id": caller.id, "username": caller.username, **me, **flags}
    empty = await get(client, admin, "usage", month="2023-01")
    assert (empty["users"], empty["total_users"], empty["has_more"]) == ([], 0, False)


@pytest.mark.any_database
async def test_usage_is_sorted_as_wanted_and_comes_in_pages(
    client: httpx.AsyncClient, admin: Caller, three: list[Caller]
) -> None:
    orders = {
        "total_cost": [2, 0, 1],
        "total_tokens": [0, 2, 1],
        "input_tokens": [0, 2, 1],
        "output_tokens": [0, 1, 2],
        "message_count": [0, 1, 2],
        "user_id": [2, 1, 0],
        "username": [0, 1, 2],
    }
    for sort, order in orders.items():
        expected = [three[index].id for index in order]
        shown = await get(client, admin, "usage", month=MONTH, sort=sort)
        assert [user["user_id"] for user in shown["users"]] == expected, sort
        pages = [await get(client, admin, "usage", month=MONTH, sort=sort, limit=2, page=page) for page in (1, 2, 3)]
        assert [user["user_id"] for page in pages for user in page["users"]] == expected, sort
        assert [page["has_more"] for page in pages] == [True, False, False]
        assert {page["total_users"] for page in pages} == {3}
    ascending = await get(client, admin, "usage", month=MONTH, sort="total_tokens", order="asc")
    assert [user["user_id"] for user in ascending["users"]] == [three[index].id for index in (1, 2, 0)]


async def test_users_without_usage_are_shown_if_asked(
    client: httpx.AsyncClient, admin: Caller, database: Database
) -> None:
    ayu, bo = [await accounts.add(database, name) for name in ("ayu", "bo")]
    await use(client, admin, ayu, 3, "1")
    for sort, order in (("total_cost", "desc"), ("message_count", "desc"), ("username", "asc")):
        query = {"month": MONTH, "with_usage": "false", "sort": sort, "order": order, "search": "", "limit": 2}
        pages = [await get(client, admin, "usage", page=page, **query) for page in (1, 2)]
        shown = [user for page in pages for user in page["users"]]
        assert {user["username"]: user["total_tokens"] for user in shown} == {"ayu": 4, "bo": 0, "root": 0}
        assert shown[0]["username"] == "ayu"
        assert [page["total_users"] for page in pages] == [3, 3]
    [none] = (await get(client, admin, "usage", month="2001-01", with_usage="false", search="bo"))["users"]
    assert none == dict.fromkeys(none, 0) | {"user_id": bo.id, "username": "bo"}
    assert (await get(client, admin, "usage", month="2001-01"))["users"] == []


@pytest.mark.parametrize(("search", "found"), [("AY", ["ayu"]), ("o", ["root", "bo"]), ("%", []), ("_", []), ("x", [])])
@pytest.mark.sampled(2)
async def test_users_are_found_by_a_part_of_their_name(
    client: httpx.AsyncClient, admin: Caller, database: Database, search: str, found: list[str]
) -> None:
    for name in ("ayu", "bo"):
        await use(client, admin, await accounts.add(database, name), 1, "1")
    await use(client, admin, admin, 1, "1")
    shown = await get(client, admin, "usage", month=MONTH, search=search)
    assert sorted(user["username"] for user in shown["users"]) == sorted(found)
    assert shown["total_users"] == len(found)
    query = {"month": MONTH, "search": search, "format": "csv"}
    rows = csv.DictReader(io.StringIO((await client.get("/admin/usage", headers=admin.headers, params=query)).text))
    assert sorted(row["username"] for row in rows) == sorted(found)


async def test_usage_as_csv_has_all_users_exact_money_and_no_formula(
    client: httpx.AsyncClient, admin: Caller, three: list[Caller]
) -> None:
    query: dict[str, str | int] = {"month": MONTH, "format": "csv", "limit": 1}
    answer = await client.get("/admin/usage", headers=admin.headers, params=query)
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"] == f'attachment; filename="usage-{MONTH}.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    shown = (await get(client, admin, "usage", month=MONTH))["users"]
    assert [row.keys() for row in rows] == [{"month", *user} for user in shown]
    assert [row["username"] for row in rows] == ["'=1+1", "carla", "ayu"]
    assert [row["total_cost"] for row in rows] == ["123456.7000000001", "0.1", "0.0000000003"]
    for row, user in zip(rows, shown, strict=True):
        figures = ("user_id", "input_tokens", "output_tokens", "total_tokens", "message_count")
        assert {name: int(row[name]) for name in figures} == {name: user[name] for name in figures}


async def test_csv_quotes_every_field(client: httpx.AsyncClient, admin: Caller, three: list[Caller]) -> None:
    answer = await client.get("/admin/usage", headers=admin.headers, params={"month": MONTH, "format": "csv"})
    for line in answer.text.splitlines():
        assert re.fullmatch('"[^"]*"(,"[^"]*")*', line)


FORMULAS = [
    *("=1+1", "+1", "-1", "@SUM(1)", " =1", "\t=1", "\r=1", "a,=1", "a;=1", "a\t=1", "a|=1", 'a"=1', "a\n=1", "a =1"),
    *("\uff1d1", "\uff0b1", "\uff0d1", "\uff20x", "\ufe661", "\u22121", "\u3000=1", "\u00a0=1", "\u2003+1", "a:=1"),
]


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_no_cell_of_the_csv_is_a_formula_for_any_separator(
    client: httpx.AsyncClient, admin: Caller, database: Database
) -> None:
    for name in FORMULAS:
        await use(client, admin, await accounts.add(database, name), 1, "0")
    answer = await client.get("/admin/usage", headers=admin.headers, params={"month": MONTH, "format": "csv"})
    rows = list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))
    found = [row["username"] for row in rows]
    assert sorted(name.replace("'", "") for name in found) == sorted(FORMULAS)
    for name in found:
        for cell in re.split('[,;|"\t\r\n: ]', name):
            begins = unicodedata.normalize("NFKC", cell.strip()[:1]).replace("\u2212", "-")
            assert begins not in ("=", "+", "-", "@"), repr(name)
    assert not any(name.startswith(("\t", "\r", "\n")) for name in found)


async def test_what_cannot_be_asked_is_refused_with_its_field(client: httpx.AsyncClient, admin: Caller) -> None:
    bad = [("month", value) for value in ("", "2024", "2024-13", "0000-01", "2024-1", "x")]
    bad += [("sort", "hashed_password"), ("sort", ""), ("order", "up"), ("format", "xml")]
    bad += [("page", "0"), ("page", "1000001"), ("limit", "0"), ("limit", "1001"), ("limit", "x")]
    for name, value in bad:
        answer = await client.get("/admin/usage", headers=admin.headers, params={"month": MONTH, name: value})
        assert list(problems.check(answer, 422)["errors"]) == [name], f"{name}={value}"
    problems.check(await client.get("/admin/usage", headers=admin.headers), 422)
    for query in ({"after": "-1"}, {"after": str(2**31)}, {"limit": "0"}, {"limit": "1001"}):
        answer = await client.get("/admin/users", headers=admin.headers, params=query)
        assert list(problems.check(answer, 422)["errors"]) == list(query)
