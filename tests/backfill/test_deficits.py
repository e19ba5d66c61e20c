"""Deficits: whatever was done to the rollups, what is not even is found at each level, and set right."""

import os
import random
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import RowMapping, text

from app.db.database import Database
from services.backfill import deficits
from services.backfill.deficits import KeyRange
from services.usage import token_usage
from services.usage.token_usage import Entry, Usage
from tests.support import invariants
from tests.support.backfilling import add_users, execute, run

EVERYTHING = KeyRange(-(2**31), 2**31 - 1)
DAYS = [date(2024, 1, 30) + timedelta(days=day) for day in range(4)]
FIGURES = ("input_tokens", "output_tokens", "total_cost", "message_count", "unpriced_count", "estimated_count")
TABLES = {
    "day": ("user_daily_token_usage", ("user_id", "usage_date", "model"), FIGURES),
    "month": ("user_monthly_token_usage", ("user_id", "year", "month"), FIGURES),
}


async def write(database: Database, chance: random.Random, owners: list[int]) -> None:
    entries = [
        Entry(
            user_id=owner,
            role="assistant",
            created_at=datetime.combine(chance.choice(DAYS), datetime.min.time(), UTC),
            model=chance.choice([None, "one", "two"]),
            usage=Usage(
                input_tokens=chance.randrange(9),
                output_tokens=1,
                cost=chance.choice([None, Decimal(chance.randrange(9)).scaleb(-10)]),
                usage_estimated=chance.random() < 0.5,
            ),
        )
        for owner in chance.choices(owners, k=6)
    ]
    await database.transaction(lambda session: token_usage.record_all(session, entries, UTC))


async def damage(database: Database, chance: random.Random, owners: list[int]) -> None:
    """Some rows go, some say something else, some are there without messages, also such as say nothing."""
    sqlite = database.engine.dialect.name == "sqlite"
    for table, keys, figures in TABLES.values():
        if chance.random() < 0.3:
            continue
        rows = await read(database, f"SELECT * FROM {table}")
        for row in chance.sample(rows, k=min(len(rows), chance.randrange(4))):
            here = " AND ".join(f"{key} = :{key}" for key in keys)
            change = "total_cost" if "year" in keys else chance.choice(figures)  # a month's total must stay its sum
            statement = chance.choice(
                [f"UPDATE {table} SET {change} = 77 WHERE {here}", f"DELETE FROM {table} WHERE {here}"]
            )
            await execute(database, statement, **{key: row[key] for key in keys})
        for _ in range(chance.randrange(3)):
            day = chance.choice([*DAYS, date(2023, 7, 7)])
            key = {"user_id": chance.choice(owners), "model": chance.choice(["", "gone", "lost"])}
            key |= {"usage_date": str(day) if sqlite else day, "year": day.year, "month": day.month}
            amount = chance.choice([0, 5])
            more = {"total_tokens": 2 * amount} if "year" in keys else {}
            values = {name: key[name] for name in keys} | dict.fromkeys(figures, amount) | more
            names = ", ".join(values)
            into = f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{name}' for name in values)})"
            await execute(database, f"{into} ON CONFLICT DO NOTHING", **values)


async def read(database: Database, query: str) -> Sequence[RowMapping]:
    async with database.reads() as session:
        return (await session.execute(text(query))).mappings().all()


async def uneven(database: Database) -> set[tuple[str, tuple[Any, ...]]]:
    """By level the keys of what is not even, in Python and from the bare rows."""
    should: dict[tuple[str, tuple[Any, ...]], list[Any]] = {}
    for row in await read(database, "SELECT * FROM messages WHERE usage_date IS NOT NULL"):
        day = as_date(row["usage_date"])
        flags = [row["cost"] is None, bool(row["usage_estimated"])]
        amount = [row["input_tokens"], row["output_tokens"], row["cost"] or 0, 1, *flags]
        keys = {"day": (row["user_id"], day, row["model"] or ""), "month": (row["user_id"], day.year, day.month)}
        for level, key in keys.items():
            sums = should.setdefault((level, key), [0] * len(FIGURES))
            sums[:] = [one + other for one, other in zip(sums, amount, strict=True)]
    found = {}
    for level, (table, names, figures) in TABLES.items():
        for row in await read(database, f"SELECT * FROM {table}"):
            at = tuple(as_date(row[name]) if name == "usage_date" else row[name] for name in names)
            found[level, at] = [row[name] for name in figures]
    return {key for key in should.keys() | found.keys() if should.get(key) != found.get(key)}


def as_date(stored: Any) -> date:
    day: date = date.fromisoformat(stored) if isinstance(stored, str) else stored
    return day


def differing(found: deficits.Deficits) -> set[tuple[str, tuple[Any, ...]]]:
    days = {("day", tuple(slot)) for slot in found.days}
    return days | {("month", (user, *month)) for (user, month), pair in found.months.items() if not pair.in_sync}


@pytest.mark.machine
async def test_whatever_is_not_even_is_found_at_each_level_and_set_right(database: Database) -> None:
    owners = await add_users(database, 3)
    seen: set[str] = set()
    for seed in range(60 if os.environ.get("LONG") else 6):
        chance = random.Random(seed)
        await write(database, chance, owners)
        await damage(database, chance, owners)
        expected = await uneven(database)
        found = await database.read(lambda session: deficits.read(session, EVERYTHING))
        assert differing(found) == expected, seed
        seen |= {level for level, _ in expected}
        await run(database, batch_size=chance.choice([1, 10]))
        assert await uneven(database) == set(), seed
        await invariants.check(database)
    assert seen == set(TABLES)


async def test_an_empty_day_goes_also_beside_an_empty_adjustment(database: Database) -> None:
    [owner] = await add_users(database, 1)
    empty = f"'2023-07-07', 'gone', {', '.join('0' * len(FIGURES))}"
    names = f"user_id, usage_date, model, {', '.join(FIGURES)}"
    await execute(
        database,
        f"INSERT INTO user_daily_token_usage ({names}) VALUES ({owner}, {empty})",
        f"INSERT INTO usage_adjustments ({names}, reason, created_at)"
        f" VALUES ({owner}, {empty}, 'archived', '2024-01-01 00:00:00.000000')",
    )
    found = await database.read(lambda session: deficits.read(session, EVERYTHING))
    assert differing(found) == {("day", (owner, date(2023, 7, 7), "gone"))}
    await run(database)
    assert await uneven(database) == set()
