"""Adopting by one statement: it gives the day and the cost of the one rule, whatever a row holds."""

import asyncio
import functools
import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import select

from app.db import migrations
from app.db.database import Database
from models import Message
from services.backfill import adoption, old_rows
from tests.support import old_databases, raw_sql

UTC_ZONE = ZoneInfo("UTC")
ZONES = st.sampled_from([UTC_ZONE, ZoneInfo("Asia/Tokyo"), ZoneInfo("America/New_York")])
INSTANTS = st.datetimes(timezones=st.none() | st.just(timezone(timedelta(hours=-9, minutes=-30))))
NEARLY_INSTANTS = st.from_regex(
    r"[0-9]{4}-[0-3][0-9]-[0-4][0-9][ T][0-2][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9 Z+:]{6})?", fullmatch=True
)
TEXTS = st.one_of(INSTANTS.map(str), INSTANTS.map(datetime.isoformat), NEARLY_INSTANTS, st.text(max_size=26))
TIES = st.integers(0, 10**15).map(lambda half_units: (half_units + 0.5) * 1e-10)
COSTS = st.one_of(
    st.floats(), st.floats(0, 20_000), TIES, st.integers(-(2**63), 2**63 - 1), st.text(), st.binary(), st.none()
)


@pytest.fixture(scope="module")
def connection() -> Iterator[sqlite3.Connection]:
    """A database with one old row, of the types that old tables have."""
    with closing(sqlite3.connect(":memory:")) as opened:
        opened.execute("CREATE TABLE m (created_at DATETIME, model_cost FLOAT)")
        opened.execute("INSERT INTO m VALUES (NULL, NULL)")
        yield opened


def both_ways(connection: sqlite3.Connection, zone: ZoneInfo, **columns: Any) -> tuple[Any, old_rows.Finding]:
    """What SQLite makes of a column of the row, and what judging the row makes of it."""
    [(name, value)] = columns.items()
    for function, call in adoption.sqlite_functions(zone).items():
        connection.create_function(function, 1, call, deterministic=True)
    connection.execute(f"UPDATE m SET {name} = ?", (value,))
    day, cost = adoption.day_on_sqlite("created_at", zone), adoption.cost_on_sqlite("model_cost")
    expression = day if name == "created_at" else cost
    made, stored = connection.execute(f"SELECT {expression}, {name} FROM m").fetchone()
    usual = {"created_at": "2024-05-05 12:00:00", "model_cost": None, name: stored}
    row: Any = SimpleNamespace(
        id=1, owner=7, has_conversation=True, role="assistant", input_tokens=1, output_tokens=1, **usual
    )
    return made, old_rows.examine(row, zone)


@given(value=TEXTS | st.binary(max_size=26) | st.integers(0, 10**9) | st.floats() | st.none(), zone=ZONES)
@example(value="2024-02-30 10:00:00", zone=UTC_ZONE)
@example(value="2024-02-29 24:00:00", zone=UTC_ZONE)
@example(value="2024-02-29 10:00:60", zone=UTC_ZONE)
@example(value="2024-02-29 10:00:00.12345Z", zone=UTC_ZONE)
@example(value="2024-02-29 10:00:00.1+0500", zone=UTC_ZONE)
@example(value="0000-05-05 10:00:00", zone=UTC_ZONE)
@example(value="0001-01-01 10:00:00", zone=UTC_ZONE)
@example(value="9999-12-31 10:00:00.000000", zone=UTC_ZONE)
@example(value=b"2024-02-29 10:00:00", zone=UTC_ZONE)
@example(value="2024-02-29 10:00:00\0junk", zone=UTC_ZONE)
@example(value="2024-02-29 20:00:00", zone=ZoneInfo("Asia/Tokyo"))
def test_a_day_is_that_of_the_one_rule(connection: sqlite3.Connection, value: Any, zone: ZoneInfo) -> None:
    day, finding = both_ways(connection, zone, created_at=value)
    assert day == (finding.usage.usage_date.isoformat() if finding.usage else None)


@given(value=COSTS)
@example(value=2.0**-11 + 2.0**-20)
@example(value=9_999.99999999995)
@example(value=1_000_000.0)
@example(value=-0.0)
@example(value=-1e-300)
def test_a_cost_is_that_of_the_one_rule(connection: sqlite3.Connection, value: Any) -> None:
    cost, finding = both_ways(connection, UTC_ZONE, model_cost=value)
    expected = finding.usage.cost if finding.usage else None
    assert cost == (None if expected is None else int(expected.scaleb(10)))


def test_plain_rows_are_not_looked_at_one_by_one(connection: sqlite3.Connection) -> None:
    calls: list[Any] = []
    for name in adoption.sqlite_functions(UTC_ZONE):
        connection.create_function(name, 1, calls.append)
    expressions = [adoption.day_on_sqlite("created_at", UTC_ZONE), adoption.cost_on_sqlite("model_cost")]
    for created_at in ("2024-02-29 10:00:00", "2024-02-29 10:00:00.123456"):
        connection.execute("UPDATE m SET created_at = ?, model_cost = 0.0123456", (created_at,))
        assert connection.execute(f"SELECT {', '.join(expressions)} FROM m").fetchone() == ("2024-02-29", 123456000)
    assert not calls


def odd_instant(chance: random.Random, zone: ZoneInfo) -> datetime:
    """Near the beginning of a day in the zone, or near a change of its offset; rarely out of the usual years."""
    year = chance.choice([1, 1883, 2014, 2015, *[chance.randrange(2015, 2026)] * 12, 2500, 9998])
    midnight = datetime(year, chance.randrange(1, 13), chance.randrange(1, 29), tzinfo=zone)
    away = timedelta(microseconds=chance.choice([-1, 0, 1, chance.randrange(-(10**10), 10**10)]))
    return (midnight + away).astimezone(UTC)


def odd_cost(chance: random.Random) -> float | None:
    tie = (chance.randrange(10 ** chance.randrange(1, 15)) + 0.5) * 1e-10
    odd = [None, 0.0, -0.0, -0.5, float("nan"), float("inf"), 1e6, 2e6, 99_999.99999999994, 2.0**-11, 3 * 2.0**-11]
    return chance.choice([*odd, tie, *[chance.uniform(0, 10 ** chance.randrange(-6, 5))] * 4])


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Pyongyang", "America/Nuuk", "Asia/Jakarta"])
@pytest.mark.sampled(1)
def test_plain_rows_are_adopted_by_the_one_rule(empty_database_url: str, kind: str, zone: str) -> None:
    old_databases.build(empty_database_url, 3, rows=1)
    raw_sql.run(empty_database_url, "DELETE FROM feedback", "DELETE FROM messages")
    asyncio.run(migrations.upgrade(empty_database_url))
    talk = raw_sql.value(
        empty_database_url, "SELECT min(id) FROM conversations WHERE user_id IN (SELECT id FROM users)"
    )
    chance, place = random.Random(zone), ZoneInfo(zone)
    columns = ("id", "conversation_id", "role", "created_at", "input_tokens", "output_tokens", "model_cost")
    rows = []
    for number in range(1, 1001):
        instant = odd_instant(chance, place)
        written = instant if kind == "postgresql" else str(instant.replace(tzinfo=None))
        tokens = chance.choice([None, -1, 0, 5, 5, 5, 5, 2**31 - 1])
        role = chance.choice(["assistant", "assistant", "assistant", "user"])
        rows.append((number, talk, role, written, tokens, chance.choice([None, 7]), odd_cost(chance)))
    raw_sql.insert(empty_database_url, "messages", columns, rows)

    expected, stored = asyncio.run(both_of_all(empty_database_url, place))
    for message_id, *columns_of_row in stored:
        finding = expected[message_id]
        assert finding.reason is None
        usage = finding.usage
        assert columns_of_row == [finding.user_id, usage and usage.usage_date, usage and usage.cost]
    right = sum(finding.reason is None for finding in expected.values())
    assert len(stored) == right if kind == "sqlite" else right * 0.6 < len(stored) < right


async def both_of_all(url: str, zone: ZoneInfo) -> tuple[dict[int, old_rows.Finding], Sequence[Any]]:
    """What examining says of each row, and then the rows that the statement adopted."""
    database = Database.open(url)
    old = await database.read(functools.partial(old_rows.find, users=None, zone=zone))
    async with database.reads() as session:
        expected = {row.id: old_rows.examine(row, zone) async for row in old_rows.read(session, old)}
    await database.transaction(lambda session: adoption._adopt_plain_rows(session, old, 0, 1000))
    columns = (Message.id, Message.user_id, Message.usage_date, Message.cost)
    async with database.reads() as session:
        stored = (await session.execute(select(*columns).where(Message.user_id.is_not(None)))).all()
    await database.close()
    return expected, stored
