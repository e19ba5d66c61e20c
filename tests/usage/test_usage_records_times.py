"""`POST /usage/records`: to which month usage belongs."""

from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from app import clock
from app.db.database import Database
from tests.support import invariants, problems, records
from tests.support.accounts import SECRET_KEY, Caller
from tests.support.records import post, record

MONTHS = {
    "UTC": {
        "2024-01-31T23:59:59.999999Z": "2024-01",
        "2024-01-31T23:59:59.9999999Z": "2024-01",
        "2024-02-01T00:00:00Z": "2024-02",
        "2024-02-01 00:00:00+00:00": "2024-02",
        "2024-02-01T00:59:59+01:00": "2024-01",
        "2024-01-31T23:00:00-01:00": "2024-02",
        "2024-02-29T23:59:59Z": "2024-02",
        "2023-12-31T23:59:59-00:00": "2023-12",
        "2024-01-01T13:59:59+14:00": "2023-12",
        "1970-01-01T00:00:00Z": "1970-01",
    },
    "America/New_York": {
        "2024-11-01T03:59:59.999999Z": "2024-10",
        "2024-11-01T04:00:00Z": "2024-11",
        "2024-12-01T04:59:59.999999Z": "2024-11",
        "2024-12-01T05:00:00Z": "2024-12",
        "2024-11-01T00:00:00-04:00": "2024-11",
        "2024-01-01T00:00:00Z": "2023-12",
        "1970-01-01T00:00:00Z": "1969-12",
    },
    "Pacific/Kiritimati": {"2023-12-31T09:59:59Z": "2023-12", "2023-12-31T10:00:00Z": "2024-01"},
    "Asia/Kathmandu": {"2024-02-29T18:14:59Z": "2024-02", "2024-02-29T18:15:00Z": "2024-03"},
    "Pacific/Apia": {"2011-12-30T09:59:59Z": "2011-12", "2011-12-31T10:00:00Z": "2012-01"},
}


@pytest.fixture(params=["UTC"])
def zone(request: pytest.FixtureRequest) -> str:
    """`USAGE_TIMEZONE`."""
    return str(request.param)


@pytest.fixture
def app_settings(database_url: str, zone: str) -> dict[str, Any]:
    """The settings of the application under test."""
    return {"database_url": database_url, "secret_key": SECRET_KEY, "usage_timezone": zone}


@pytest.mark.parametrize("zone", MONTHS, indirect=True)
@pytest.mark.sampled(2)
async def test_usage_counts_in_the_month_of_its_own_time(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller, zone: str
) -> None:
    expected: dict[str, int] = {}
    for i, (instant, month) in enumerate(MONTHS[zone].items()):
        await records.store(client, service, [record(ayu, input_tokens=2**i, output_tokens=0, created_at=instant)])
        expected[month] = expected.get(month, 0) + 2**i
    found = await invariants.check(database, ZoneInfo(zone))
    assert {month: totals.input_tokens for (_, month), totals in found.items()} == expected
    me = await client.get("/auth/me", headers=ayu.headers)
    shown = [(month["month"], month["input_tokens"]) for month in me.json()["token_stats"]["monthly_stats"]]
    assert shown == sorted(expected.items(), reverse=True)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"], indirect=True)
async def test_one_request_may_hold_many_months(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller, zone: str
) -> None:
    instants = [f"{year}-{month:02d}-01T00:00:00Z" for year in (2022, 2023, 2024) for month in range(1, 13)]
    batch = [record(ayu, created_at=instant) for instant in instants for _ in range(3)]
    await records.store(client, service, batch[1::2] + batch[::2])
    found = await invariants.check(database, ZoneInfo(zone))
    assert sorted(month for _, month in found) == [instant[:7] for instant in instants]
    assert {totals.message_count for totals in found.values()} == {3}


async def test_another_form_of_the_instant_is_the_same_record(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    first = record(ayu, created_at="2024-02-01T00:30:00+01:00")
    await records.store(client, service, [first])
    for instant in ("2024-01-31T23:30:00Z", "2024-01-31T23:30:00.000000Z", "2024-01-31 18:30:00-05:00"):
        answer = await post(client, service, [first | {"created_at": instant}])
        assert answer.json() == {"recorded": 0, "duplicates": 1}, answer.text
    assert list(await invariants.check(database)) == [(ayu.id, "2024-01")]


async def test_times_that_cannot_be_are_refused(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    future = (clock.now() + timedelta(days=1, minutes=5)).isoformat()
    bad: list[object] = [future, "1969-12-31T23:59:59Z", "1970-01-01T00:00:00+00:01", "9999-12-31T23:59:59-14:00"]
    bad += ["0001-01-01T00:00:00+14:00", "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "2024-02-30T00:00:00Z"]
    bad += ["2023-02-29T00:00:00Z", "2024-01-01T24:00:01Z", "2024-01-01T00:00:60Z", "2024-13-01T00:00:00Z"]
    bad += ["2024-01-01T00:00:00+25:00", "yesterday", "", "2024-01-01T00:00:00Z\x00", "\u0662024-01-01T00:00:00Z"]
    bad += [True, 10**30, -1, "1e30", [], {}, 0, 1_700_000_000, 1.7e9, "1700000000", "2024-01-01", "20240101T000000Z"]
    bad += ["2024-01-01T00:00:00", "2024-W01-1T00:00:00Z", " 2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z\n"]
    taken = []
    for instant in bad:
        answer = await post(client, service, [record(ayu, created_at=instant)])
        if answer.status_code == 200:
            taken.append(instant)
        else:
            assert list(problems.check(answer, 422)["errors"]) == ["records.0.created_at"]
    assert taken == []
    assert await invariants.check(database) == {}


async def test_a_clock_that_runs_a_little_ahead_is_forgiven(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    instant = clock.now() + timedelta(hours=23)
    await records.store(client, service, [record(ayu, created_at=instant.isoformat())])
    assert list(await invariants.check(database)) == [(ayu.id, f"{instant:%Y-%m}")]
