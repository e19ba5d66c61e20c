"""Usage over any range of days, by day and by model: for oneself, and for admins of a user and of all."""

import csv
import io
import os
import uuid
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.db.database import Database
from routers.http import csv_answers
from routers.usage_ranges import MAX_FILLED_DAYS
from services.usage import ranges, rollups
from services.usage.ranges import DayRange
from services.usage.rollups import FIGURES, Sums
from tests.support import accounts, problems, records
from tests.support.accounts import Caller

PRICED = {"model": "gpt-4o", "cost": "0.0000000001"}
UNPRICED = {"model": "a model without a price"}
FIRST, LAST = date(2024, 11, 28), date(2024, 12, 3)
PATHS = ("daily", "models")


@pytest.fixture
async def admin(database: Database) -> Caller:
    """An admin."""
    return await accounts.add(database, "boss", "admin")


@pytest.fixture
async def ayu(database: Database) -> Caller:
    """A user."""
    return await accounts.add(database, "ayu")


async def get(client: httpx.AsyncClient, caller: Caller, path: str, **query: Any) -> Any:
    answer = await client.get(path, headers=caller.headers, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def used(owner: Caller, day: str, **changes: Any) -> dict[str, Any]:
    return records.record(owner, created_at=f"{day}T12:00:00Z", **changes)


async def test_days_of_a_range_are_shown_newest_first(client: httpx.AsyncClient, admin: Caller, ayu: Caller) -> None:
    await records.store(
        client,
        admin,
        [
            used(ayu, "2024-11-27", **PRICED),
            used(ayu, "2024-11-28", **PRICED),
            used(ayu, "2024-12-03", **PRICED),
            used(ayu, "2024-12-03", **UNPRICED, input_tokens=1, output_tokens=2),
            used(ayu, "2024-12-04", **PRICED),
            used(admin, "2024-12-01", **PRICED),
        ],
    )
    shown = await get(client, ayu, "/auth/token-stats/daily", **{"from": str(FIRST), "to": str(LAST)})
    one = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15, "total_cost": 1e-10, "message_count": 1}
    counts = {"unpriced_count": 1, "estimated_count": 0}
    two = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18, "total_cost": 1e-10, "message_count": 2}
    assert shown == {
        "from": "2024-11-28",
        "to": "2024-12-03",
        "time_zone": "UTC",
        "daily_stats": [
            {"date": "2024-12-03", **two, **counts},
            {"date": "2024-11-28", **one, "unpriced_count": 0, "estimated_count": 0},
        ],
        "total_days": 2,
        "total": {
            "input_tokens": 21,
            "output_tokens": 12,
            "total_tokens": 33,
            "total_cost": 2e-10,
            "message_count": 3,
            **counts,
        },
    }


async def test_models_are_shown_the_most_expensive_first(client: httpx.AsyncClient, admin: Caller, ayu: Caller) -> None:
    await records.store(
        client,
        admin,
        [
            used(ayu, "2024-12-01", **UNPRICED),
            used(ayu, "2024-12-02", **UNPRICED),
            used(ayu, "2024-12-02", model="b", cost="0.5"),
            used(ayu, "2024-12-03", model="a", cost="2"),
            used(ayu, "2024-12-04", model="c", cost="9"),
        ],
    )
    shown = await get(client, ayu, "/auth/token-stats/models", **{"from": "2024-12-01", "to": "2024-12-03"})
    found = [(each["model"], each["total_cost"], each["message_count"]) for each in shown["model_stats"]]
    assert found == [("a", 2, 1), ("b", 0.5, 1), ("a model without a price", 0, 2)]
    assert (shown["total_models"], shown["total"]["total_cost"], shown["total"]["unpriced_count"]) == (3, 2.5, 2)


async def test_days_without_usage_are_zeros_if_asked(client: httpx.AsyncClient, admin: Caller, ayu: Caller) -> None:
    await records.store(client, admin, [used(ayu, "2024-11-30", **PRICED)])
    query = {"from": str(FIRST), "to": str(LAST), "fill": "true"}
    shown = await get(client, ayu, "/auth/token-stats/daily", **query)
    assert [day["date"] for day in shown["daily_stats"]] == [str(LAST - timedelta(days=back)) for back in range(6)]
    assert [day["message_count"] for day in shown["daily_stats"]] == [0, 0, 0, 1, 0, 0]
    assert shown["total_days"] == 6


async def test_without_a_range_it_is_this_month_so_far(client: httpx.AsyncClient, ayu: Caller) -> None:
    answer = await client.post("/chat", json={"message": "Hi", "stream": False}, headers=ayu.headers)
    today = answer.json()["message"]["created_at"][:10]
    for path in PATHS:
        shown = await get(client, ayu, f"/auth/token-stats/{path}")
        assert (shown["from"], shown["to"]) == (f"{today[:7]}-01", today)
        assert shown["total"]["message_count"] == 1
    shown = await get(client, ayu, "/auth/token-stats/daily", to="2024-02-29")
    assert (shown["from"], shown["to"]) == ("2024-02-01", "2024-02-29")


async def test_admins_see_a_user_and_all_users(client: httpx.AsyncClient, admin: Caller, ayu: Caller) -> None:
    await records.store(
        client, admin, [used(ayu, "2024-12-01", **PRICED), used(admin, "2024-12-01", **PRICED, input_tokens=1)]
    )
    query = {"from": "2024-12-01", "to": "2024-12-01"}
    for path in PATHS:
        own = await get(client, ayu, f"/auth/token-stats/{path}", **query)
        assert await get(client, admin, f"/admin/users/{ayu.id}/token-stats/{path}", **query) == own
        everyone = await get(client, admin, f"/admin/token-stats/{path}", **query)
        assert (own["total"]["input_tokens"], everyone["total"]["input_tokens"]) == (10, 11)
        missing = await client.get(f"/admin/users/{admin.id + ayu.id}/token-stats/{path}", headers=admin.headers)
        problems.check(missing, 404)
        deactivated = {**query, "format": "csv"}
        answer = await client.get(f"/admin/token-stats/{path}", headers=ayu.headers, params=deactivated)
        problems.check(answer, 403)


async def test_admins_see_conversations_without_titles(client: httpx.AsyncClient, admin: Caller, ayu: Caller) -> None:
    question = {"message": "a secret", "stream": False}
    told = [(await client.post("/chat", json=question, headers=ayu.headers)).json() for _ in range(2)]
    day = told[0]["message"]["created_at"][:10]
    await records.store(client, admin, [used(ayu, day, **PRICED), used(admin, day, **PRICED)])
    assert (await client.delete(f"/conversations/{told[0]['conversation_id']}", headers=ayu.headers)).status_code == 204
    own = await get(client, ayu, f"/auth/token-stats/daily/{day}/conversations")
    assert own["total_conversations"] == 3
    shown = await get(client, admin, f"/admin/users/{ayu.id}/token-stats/daily/{day}/conversations")
    untitled = [{**talk, "conversation_title": None} for talk in own["conversation_stats"]]
    assert shown == {**own, "conversation_stats": untitled}
    assert "secret" not in str(shown)
    empty = await get(client, admin, f"/admin/users/{ayu.id}/token-stats/daily/2024-01-01/conversations")
    assert empty == {"date": "2024-01-01", "conversation_stats": [], "total_conversations": 0}


@pytest.mark.any_database
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"from": "2024-12-02", "to": "2024-12-01"}, "from"),
        ({"from": "9999-12-31"}, "from"),
        ({"from": "2024-13-01"}, "from"),
        ({"from": "2024-12-01T00:00:00"}, "from"),
        ({"to": "1733011200"}, "to"),
        ({"to": ""}, "to"),
        ({"format": "xml"}, "format"),
        ({"from": "0001-01-01", "to": "9999-12-31", "fill": "true"}, "fill"),
        ({"from": "2020-01-01", "to": str(date(2020, 1, 1) + timedelta(days=MAX_FILLED_DAYS)), "fill": "1"}, "fill"),
    ],
)
async def test_what_is_no_range_is_refused(client: httpx.AsyncClient, ayu: Caller, query: Any, field: str) -> None:
    problem = problems.check(await client.get("/auth/token-stats/daily", headers=ayu.headers, params=query), 422)
    assert list(problem["errors"]) == [field]


async def test_any_range_is_shown_without_zeros(client: httpx.AsyncClient, admin: Caller, ayu: Caller) -> None:
    await records.store(client, admin, [used(ayu, "2024-12-01", **PRICED)])
    for path in PATHS:
        shown = await get(client, ayu, f"/auth/token-stats/{path}", **{"from": "0001-01-01", "to": "9999-12-31"})
        assert shown["total"]["message_count"] == 1
    filled = {"from": "2020-01-01", "to": str(date(2020, 1, 1) + timedelta(days=MAX_FILLED_DAYS - 1)), "fill": "1"}
    shown = await get(client, ayu, "/auth/token-stats/daily", **filled)
    assert shown["total_days"] == MAX_FILLED_DAYS


@pytest.mark.parametrize("how", ["format", "accept"])
async def test_csv_has_exact_money_and_no_formula(
    client: httpx.AsyncClient, admin: Caller, ayu: Caller, how: str
) -> None:
    exact = {"cost": "678901.0000000001"}
    await records.store(
        client, admin, [used(ayu, "2024-12-01", **exact, model="=1+1"), used(ayu, "2024-12-03", **exact, model="-2")]
    )
    query = {"from": "2024-12-01", "to": "2024-12-03"} | ({"format": "csv"} if how == "format" else {})
    headers = ayu.headers | ({"Accept": "text/csv"} if how == "accept" else {})

    async def table(path: str) -> list[dict[str, str]]:
        answer = await client.get(f"/auth/token-stats/{path}", headers=headers, params=query)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/csv")
        assert "2024-12-01-2024-12-03.csv" in answer.headers["content-disposition"]
        return list(csv.DictReader(io.StringIO(answer.text)))

    days = await table("daily")
    assert list(days[0]) == ["date", *FIGURES]
    assert [(day["date"], day["total_cost"]) for day in days] == [
        ("2024-12-03", "678901.0000000001"),
        ("2024-12-01", "678901.0000000001"),
    ]
    assert [row["model"] for row in await table("models")] == ["'-2", "'=1+1"]


@pytest.mark.any_database
@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("text/csv", True),
        ("TEXT/CSV;charset=utf-8", True),
        ("text/csv, */*;q=0.1", True),
        ("application/json;q=0.5, text/csv", True),
        ("text/csv;q=0.5, application/json", False),
        ("text/csv;q=0", False),
        ("application/json, text/csv", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("text/csv;q=0.1, */*", False),
        ("text/csv;q=0.5, application/*", False),
        ("text/csv, */*;q=0.9", True),
        ("", False),
        (";;q=,", False),
    ],
)
@pytest.mark.sampled(4)
async def test_accept_chooses_csv(client: httpx.AsyncClient, ayu: Caller, accept: str, wanted: bool) -> None:
    for query, expected in (({}, wanted), ({"format": "csv"}, True), ({"format": "json"}, False)):
        headers = ayu.headers | {"Accept": accept}
        answer = await client.get("/auth/token-stats/daily", headers=headers, params=query)
        assert answer.headers["content-type"].startswith(csv_answers.KIND) is expected


async def test_sums_have_no_limit(client: httpx.AsyncClient, admin: Caller, ayu: Caller, database: Database) -> None:
    """More dollars than SQLite's integers have units for."""
    months = [f"2024-{month:02d}-10" for month in (1, 2, 3)]
    most = rollups.Sums(2**52, 2**52, Decimal("899999999.9999999999"), 2**52)
    async with database.sessions.begin() as session:
        for owner in (admin, ayu):
            slots = {rollups.Slot(owner.id, date.fromisoformat(day), "m"): most for day in months}
            await rollups.add(session, slots)
    query = {"from": months[0], "to": months[-1]}
    for base, count in (("/auth", 3), ("/admin", 6)):
        for path in PATHS:
            caller = admin if base == "/admin" else ayu
            answer = await client.get(
                f"{base}/token-stats/{path}", headers=caller.headers, params={**query, "format": "csv"}
            )
            assert answer.status_code == 200, answer.text
            rows = list(csv.DictReader(io.StringIO(answer.text)))
            assert sum(Decimal(row["total_cost"]) for row in rows) == most.total_cost * count
            assert sum(int(row["total_tokens"]) for row in rows) == 2**53 * count
        assert (await get(client, caller, f"{base}/token-stats/models", **query))["total"][
            "message_count"
        ] == 2**52 * count


MODELS = st.sampled_from(["a", "b", "c"])
USED = st.tuples(st.booleans(), st.dates(FIRST, LAST), MODELS, st.integers(0, 10**6), st.decimals(0, 10, places=10))


@given(usage=st.lists(USED, max_size=12), bounds=st.tuples(st.dates(FIRST, LAST), st.dates(FIRST, LAST)))
@settings(max_examples=15 if os.environ.get("LONG") else 8, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_ranges_are_the_sums_of_their_messages(
    client: httpx.AsyncClient, database: Database, admin: Caller, ayu: Caller, usage: Any, bounds: Any
) -> None:
    """Days and models, of each user and of all, to the last digit."""
    owners = {who: await accounts.add(database, uuid.uuid4().hex) for who in (False, True)}
    sent = [
        used(owners[who], str(day), model=model, input_tokens=tokens, cost=str(cost))
        for who, day, model, tokens, cost in usage
    ]
    within = DayRange(min(bounds), max(bounds))
    async with database.sessions() as session:
        before = [await ranges.by_day(session, within), await ranges.by_model(session, within)]
    if sent:
        await records.store(client, admin, sent)
    selected = [item for item in usage if within.first <= item[1] <= within.last]

    def sums(key: int, *whose: bool) -> dict[Any, Sums]:
        found: dict[Any, Sums] = {}
        for item in selected:
            if item[0] in whose:
                found.setdefault(item[key], Sums()).add(Sums.of_message(item[3], 5, Decimal(item[4])))
        return found

    async with database.sessions() as session:
        for who, owner in owners.items():
            assert await ranges.by_day(session, within, owner.id) == sums(1, who)
            assert await ranges.by_model(session, within, owner.id) == sums(2, who)
        queries: Any = (ranges.by_day, ranges.by_model)
        earlier: Any
        for key, (query, earlier) in enumerate(zip(queries, before, strict=True), 1):
            expected = sums(key, False, True)
            for value, former in earlier.items():
                expected.setdefault(value, Sums()).add(former)
            assert await query(session, within) == expected
