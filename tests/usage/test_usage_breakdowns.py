"""`GET /auth/token-stats/…`: a month by its days, a day by its conversations."""

from decimal import Decimal
from typing import Any

import httpx
import pytest

from app.db.database import Database
from tests.support import accounts

CHAT = {"message": "hello", "stream": False}


def _record(user_id: int, number: int, created_at: str, **more: Any) -> dict[str, Any]:
    figures = {"input_tokens": 100 + number, "output_tokens": 10, "cost": f"0.{number:010d}"}
    return {"id": f"r{number}", "user_id": user_id, "model": "m", "created_at": created_at, **figures, **more}


async def _report(client: httpx.AsyncClient, database: Database, *records: dict[str, Any]) -> None:
    service = await accounts.add(database, "backend", "service")
    answer = await client.post("/usage/records", json={"records": list(records)}, headers=service.headers)
    assert answer.status_code == 200, answer.text


async def test_a_month_is_shown_by_its_days_newest_first(client: httpx.AsyncClient, database: Database) -> None:
    caller = await accounts.register(client, "ayu")
    await _report(
        client,
        database,
        _record(caller.id, 1, "2024-12-31T23:59:59.999999Z"),
        _record(caller.id, 2, "2024-12-01T00:00:00Z"),
        _record(caller.id, 3, "2024-12-01T12:00:00Z"),
        _record(caller.id, 4, "2025-01-01T00:00:00Z"),
        _record(caller.id, 5, "2024-11-30T23:59:59Z"),
        _record(caller.id, 6, "2024-12-02T00:00:00Z", role="user"),
    )
    answer = await client.get("/auth/token-stats/monthly/2024/12/daily", headers=caller.headers)
    assert answer.json() == {
        "month": "2024-12",
        "daily_stats": [
            {
                "date": "2024-12-31",
                "input_tokens": 101,
                "output_tokens": 10,
                "total_tokens": 111,
                "total_cost": 1e-10,
                "message_count": 1,
                "unpriced_count": 0,
                "estimated_count": 0,
                "conversation_count": 0,
            },
            {
                "date": "2024-12-01",
                "input_tokens": 205,
                "output_tokens": 20,
                "total_tokens": 225,
                "total_cost": 5e-10,
                "message_count": 2,
                "unpriced_count": 0,
                "estimated_count": 0,
                "conversation_count": 0,
            },
        ],
        "total_days": 2,
    }


async def test_a_day_is_shown_by_its_conversations_latest_first(client: httpx.AsyncClient, database: Database) -> None:
    caller = await accounts.register(client, "ayu")
    talks = [(await client.post("/chat", json=CHAT, headers=caller.headers)).json() for _ in range(2)]
    first, second = (talk["conversation_id"] for talk in talks)
    again = await client.post("/chat", json=CHAT | {"conversation_id": first}, headers=caller.headers)
    created_at = again.json()["message"]["created_at"]
    day = created_at[:10]
    await client.delete(f"/conversations/{second}", headers=caller.headers)
    other = await accounts.register(client, "bo")
    await client.post("/chat", json=CHAT, headers=other.headers)

    answer = (await client.get(f"/auth/token-stats/daily/{day}/conversations", headers=caller.headers)).json()
    assert [item["conversation_id"] for item in answer["conversation_stats"]] == [first, second]
    assert answer["total_conversations"] == 2
    assert answer["date"] == day
    latest, deleted = answer["conversation_stats"]
    used = [talks[0]["message"], again.json()["message"]]
    assert latest == {
        "conversation_id": first,
        "conversation_title": "hello",
        "model_type": "Standard",
        "input_tokens": sum(message["input_tokens"] for message in used),
        "output_tokens": sum(message["output_tokens"] for message in used),
        "total_tokens": sum(message["total_tokens"] for message in used),
        "total_cost": 0.0,
        "message_count": 2,
        "unpriced_count": 2,
        "estimated_count": 0,
        "last_message_at": created_at,
    }
    assert deleted["conversation_title"] == ""
    assert deleted["message_count"] == 1


async def test_the_days_of_a_month_add_up_to_the_month(client: httpx.AsyncClient, database: Database) -> None:
    caller = await accounts.register(client, "ayu")
    records = [_record(caller.id, n, f"2024-02-{1 + n % 29:02d}T{n % 24:02d}:00:00Z") for n in range(200)]
    await _report(client, database, *records)
    days = (await client.get("/auth/token-stats/monthly/2024/2/daily", headers=caller.headers)).json()["daily_stats"]
    me = (await client.get("/auth/me", headers=caller.headers)).json()
    (month,) = me["token_stats"]["monthly_stats"]
    assert len(days) == 29
    for name in ("input_tokens", "output_tokens", "total_tokens", "message_count"):
        assert sum(day[name] for day in days) == month[name]
    assert sum(Decimal(str(day["total_cost"])) for day in days) == Decimal(str(month["total_cost"]))


async def test_without_usage_both_are_empty(client: httpx.AsyncClient) -> None:
    caller = await accounts.register(client, "ayu")
    days = await client.get("/auth/token-stats/monthly/2024/12/daily", headers=caller.headers)
    assert days.json() == {"month": "2024-12", "daily_stats": [], "total_days": 0}
    talks = await client.get("/auth/token-stats/daily/2024-12-01/conversations", headers=caller.headers)
    assert talks.json() == {"date": "2024-12-01", "conversation_stats": [], "total_conversations": 0}


@pytest.mark.any_database
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("monthly/2024/13/daily", "month"),
        ("monthly/0/1/daily", "year"),
        ("monthly/10000/1/daily", "year"),
        ("daily/2024-02-30/conversations", "date"),
        ("daily/yesterday/conversations", "date"),
        ("daily/0/conversations", "date"),
        ("daily/1733011200/conversations", "date"),
        ("daily/2024-12-01T00:00:00/conversations", "date"),
        ("daily/20241201/conversations", "date"),
        ("daily/\u0662024-12-01/conversations", "date"),
        ("monthly/2_024/12/daily", "year"),
        ("monthly/2024/%2012/daily", "month"),
        ("monthly/2024/1.0/daily", "month"),
    ],
)
@pytest.mark.sampled(3)
async def test_what_is_no_date_is_refused_with_the_field(client: httpx.AsyncClient, path: str, field: str) -> None:
    caller = await accounts.register(client, "ayu")
    answer = await client.get(f"/auth/token-stats/{path}", headers=caller.headers)
    assert answer.status_code == 422
    assert list(answer.json()["errors"]) == [field]


async def test_nobody_sees_anything_without_a_token(client: httpx.AsyncClient) -> None:
    for path in ("monthly/2024/12/daily", "daily/2024-12-01/conversations"):
        assert (await client.get(f"/auth/token-stats/{path}")).status_code == 401
