"""`GET /auth/me`: the caller and their months."""

from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.clock import Month
from app.db.database import Database
from tests.support import accounts, invariants, problems, records
from tests.support.accounts import Caller

ME = "/auth/me"


async def stats_of(client: httpx.AsyncClient, caller: Caller, **query: Any) -> dict[str, Any]:
    answer = await client.get(ME, headers=caller.headers, params=query)
    assert answer.status_code == 200, answer.text
    stats: dict[str, Any] = answer.json()["token_stats"]
    return stats


def months_in(stats: dict[str, Any]) -> list[str]:
    return [month["month"] for month in stats["monthly_stats"]]


async def use(client: httpx.AsyncClient, service: Caller, owner: Caller, months: list[str]) -> None:
    instants = [f"{month}-15T12:00:00Z" for month in months]
    await records.store(client, service, [records.record(owner, created_at=instant) for instant in instants])


async def execute(database: Database, statement: str, **values: Any) -> None:
    async with database.sessions.begin() as session:
        await session.execute(text(statement), values)


async def test_a_new_user_has_no_months(client: httpx.AsyncClient) -> None:
    caller = await accounts.register(client, "ayu")
    answer = await client.get(ME, headers=caller.headers)
    assert answer.status_code == 200
    assert answer.json() == {
        "id": caller.id,
        "username": "ayu",
        "email": "ayu@example.com",
        "role": "user",
        "is_active": True,
        "token_stats": {"monthly_stats": [], "total_months": 0, "has_more": False},
    }


async def test_the_response_has_the_keys_of_the_contract_alone(
    client: httpx.AsyncClient, ayu: Caller, service: Caller, database: Database
) -> None:
    usage = {"input_tokens": 600, "output_tokens": 340, "cost": "0.018", "created_at": "2024-12-24T18:00:00Z"}
    await records.store(client, service, [records.record(ayu, **usage) for _ in range(25)])
    answer = await client.get(ME, headers=ayu.headers)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "id": ayu.id,
        "username": "ayu",
        "email": "ayu@example.com",
        "role": "user",
        "is_active": True,
        "token_stats": {
            "monthly_stats": [
                {
                    "month": "2024-12",
                    "input_tokens": 15000,
                    "output_tokens": 8500,
                    "total_tokens": 23500,
                    "total_cost": 0.45,
                    "message_count": 25,
                }
            ],
            "total_months": 1,
            "has_more": False,
        },
    }
    assert '"total_cost":0.45,' in answer.text.replace(" ", "")
    await invariants.check(database)


async def test_all_pages_together_are_all_months_newest_first(
    client: httpx.AsyncClient, ayu: Caller, service: Caller
) -> None:
    months = [str(Month(2021 + i // 12, i % 12 + 1)) for i in range(7, 47)]
    await use(client, service, ayu, sorted(months, key=lambda month: month[::-1]))
    for limit in (1, 7, 10, 36):
        seen: list[str] = []
        has_more = True
        while has_more:
            stats = await stats_of(client, ayu, limit=limit, **({"before": seen[-1]} if seen else {}))
            page, has_more = months_in(stats), stats["has_more"]
            assert len(page) == min(limit, 40 - len(seen))
            assert stats["total_months"] == 40
            seen += page
            assert has_more == (len(seen) < 40)
        assert seen == sorted(months, reverse=True)


async def test_a_page_has_twelve_months_unless_said(client: httpx.AsyncClient, ayu: Caller, service: Caller) -> None:
    await use(client, service, ayu, [str(Month(2023 + i // 12, i % 12 + 1)) for i in range(13)])
    stats = await stats_of(client, ayu)
    assert months_in(stats) == ["2024-01", *(f"2023-{month:02d}" for month in range(12, 1, -1))]
    assert (stats["total_months"], stats["has_more"]) == (13, True)


async def test_months_are_in_the_order_of_time_across_years(
    client: httpx.AsyncClient, ayu: Caller, service: Caller
) -> None:
    await use(client, service, ayu, ["2024-02", "2025-01", "2023-12", "2024-11", "2024-01", "2022-10"])
    newest_first = ["2025-01", "2024-11", "2024-02", "2024-01", "2023-12", "2022-10"]
    assert months_in(await stats_of(client, ayu)) == newest_first
    assert months_in(await stats_of(client, ayu, before="2024-02")) == newest_first[3:]
    assert months_in(await stats_of(client, ayu, before="2024-03")) == newest_first[2:]
    assert months_in(await stats_of(client, ayu, before="2022-10")) == []
    assert months_in(await stats_of(client, ayu, before="0001-01")) == []
    assert months_in(await stats_of(client, ayu, before="9999-12")) == newest_first


async def test_from_limits_the_months_and_their_count(client: httpx.AsyncClient, ayu: Caller, service: Caller) -> None:
    await use(client, service, ayu, ["2023-11", "2023-12", "2024-01", "2024-02", "2025-01"])
    stats = await stats_of(client, ayu, from_year=2023, from_month=12)
    assert months_in(stats) == ["2025-01", "2024-02", "2024-01", "2023-12"]
    assert (stats["total_months"], stats["has_more"]) == (4, False)
    page = await stats_of(client, ayu, from_year=2023, from_month=12, before="2025-01", limit=2)
    assert months_in(page) == ["2024-02", "2024-01"]
    assert (page["total_months"], page["has_more"]) == (4, True)
    last = await stats_of(client, ayu, from_year=2023, from_month=12, before="2024-01", limit=2)
    assert months_in(last) == ["2023-12"]
    assert (last["total_months"], last["has_more"]) == (4, False)
    assert await stats_of(client, ayu, from_year=2026, from_month=1) == {
        "monthly_stats": [],
        "total_months": 0,
        "has_more": False,
    }


@pytest.mark.any_database
@pytest.mark.parametrize("limit", [36, 37, 48, 60, 2**31, 2**63, 10**30])
async def test_a_page_has_at_most_36_months_whatever_is_asked(
    client: httpx.AsyncClient, ayu: Caller, service: Caller, limit: int
) -> None:
    await use(client, service, ayu, [f"{year}-{month:02}" for year in range(2020, 2024) for month in range(1, 11)])
    stats = await stats_of(client, ayu, limit=limit)
    assert len(stats["monthly_stats"]) == 36
    assert (stats["total_months"], stats["has_more"]) == (40, True)


async def test_a_role_that_is_not_known_shows_as_user(
    client: httpx.AsyncClient, ayu: Caller, database: Database
) -> None:
    await execute(database, "UPDATE users SET role = 'moderator' WHERE id = :id", id=ayu.id)
    answer = await client.get(ME, headers=ayu.headers)
    assert (answer.status_code, answer.json()["role"]) == (200, "user")


async def test_bad_queries_are_refused_with_the_field(client: httpx.AsyncClient, ayu: Caller) -> None:
    months = [
        "2024-13",
        "2024-00",
        "2024-1",
        "24-01",
        "0000-01",
        "2024-01-01",
        "2024/01",
        " 2024-01",
        "\u0662\u0660\u0662\u0664-01",
    ]
    bad = [("before", month) for month in [*months, "2024-01\x00", "-2024-01", "abc"]]
    bad += [("limit", limit) for limit in ("0", "-1", "x", "1.5", str(-(2**63)), "NaN", "")]
    bad += [("include_token_stats", value) for value in ("maybe", "2")]
    for field, value in bad:
        answer = await client.get(ME, headers=ayu.headers, params={field: value})
        assert list(problems.check(answer, 422)["errors"]) == [field]
    for field, value in [("from_year", "0"), ("from_year", "10000"), ("from_month", "0"), ("from_month", "13")]:
        params = {"from_year": "2024", "from_month": "1", field: value}
        answer = await client.get(ME, headers=ayu.headers, params=params)
        assert list(problems.check(answer, 422)["errors"]) == [field]


@pytest.mark.parametrize("given", [{"from_year": 2024}, {"from_month": 1}])
async def test_from_year_and_from_month_go_together(
    client: httpx.AsyncClient, ayu: Caller, given: dict[str, int]
) -> None:
    answer = await client.get(ME, headers=ayu.headers, params=given)
    errors = problems.check(answer, 422)["errors"]
    assert "from_year and from_month require each other" in str(errors)


async def test_without_token_stats_they_are_null(client: httpx.AsyncClient, ayu: Caller, service: Caller) -> None:
    await use(client, service, ayu, ["2024-01"])
    answer = await client.get(ME, headers=ayu.headers, params={"include_token_stats": "false"})
    assert answer.status_code == 200
    assert answer.json() == {
        "id": ayu.id,
        "username": "ayu",
        "email": "ayu@example.com",
        "role": "user",
        "is_active": True,
        "token_stats": None,
    }


async def test_months_without_usage_are_not_shown(
    client: httpx.AsyncClient, ayu: Caller, service: Caller, database: Database
) -> None:
    await use(client, service, ayu, ["2024-01"])
    await records.store(client, service, [records.record(ayu, role="user", created_at="2024-03-01T00:00:00Z")])
    await execute(
        database,
        "INSERT INTO user_monthly_token_usage (user_id, year, month, input_tokens, output_tokens, total_tokens,"
        " total_cost, message_count) VALUES (:id, 2024, 2, 0, 0, 0, 0, 0)",
        id=ayu.id,
    )
    stats = await stats_of(client, ayu)
    assert months_in(stats) == ["2024-01"]
    assert (stats["total_months"], stats["has_more"]) == (1, False)


async def test_everybody_sees_their_own_months_alone(
    client: httpx.AsyncClient, ayu: Caller, service: Caller, database: Database
) -> None:
    bela = await accounts.add(database, "bela")
    await use(client, service, ayu, ["2024-01", "2024-02"])
    await use(client, service, bela, ["2024-02", "2024-03", "2024-04"])
    assert months_in(await stats_of(client, ayu)) == ["2024-02", "2024-01"]
    assert months_in(await stats_of(client, bela)) == ["2024-04", "2024-03", "2024-02"]
    assert (await stats_of(client, service))["total_months"] == 0
    await invariants.check(database)


async def test_an_old_user_without_role_and_state_is_active(
    client: httpx.AsyncClient, ayu: Caller, database: Database
) -> None:
    await execute(database, "UPDATE users SET role = NULL, is_active = NULL WHERE id = :id", id=ayu.id)
    answer = await client.get(ME, headers=ayu.headers)
    assert answer.status_code == 200
    assert (answer.json()["role"], answer.json()["is_active"]) == ("user", True)


@pytest.mark.parametrize(
    "statement", ["UPDATE users SET is_active = false WHERE id = :id", "DELETE FROM users WHERE id = :id"]
)
async def test_the_token_of_a_deactivated_or_deleted_user_is_refused(
    client: httpx.AsyncClient, ayu: Caller, database: Database, statement: str
) -> None:
    await execute(database, statement, id=ayu.id)
    for stats in ("true", "false"):
        answer = await client.get(ME, headers=ayu.headers, params={"include_token_stats": stats})
        problems.check(answer, 401)


async def test_without_a_valid_token_nothing_is_told(client: httpx.AsyncClient, ayu: Caller) -> None:
    token = ayu.headers["Authorization"].removeprefix("Bearer ")
    for headers in ({}, {"Authorization": f"Basic {token}"}, {"Authorization": "Bearer"}, {"Authorization": token}):
        problems.check(await client.get(ME, headers=headers), 401)
    problems.check(await client.get(ME, headers={"Authorization": "Bearer garbage"}, params={"limit": "0"}), 401)
