"""Measure `POST /usage/records`.

The floors are the request without counting, and the same rows inserted through the bare driver.
"""

import contextlib
import itertools
import json
import sqlite3
import time
from collections.abc import Iterator
from typing import Any, cast

import asyncpg
from sqlalchemy import Table

from app import clock
from benchmarks import databases, load
from benchmarks.figures import Figure, Measure, Target, by_turns
from benchmarks.sizes import Sizes
from benchmarks.stages import Stage
from models import Message

_numbers = itertools.count(1)
_MESSAGES = cast(Table, Message.__table__)


def figures(stage: Stage, sizes: Sizes) -> Iterator[Figure]:
    """Yield all rows of a stage."""
    ours, without, bare = by_turns(
        sizes.repeats,
        _posting(stage, stage.ours, sizes),
        _posting(stage, stage.floor, sizes),
        _inserting(stage, sizes),
    )
    what = f"POST /usage/records, {sizes.records:,} a request"
    for floor_is, floor, bound in (("without counting", without, 0.95), ("a bare multi-row INSERT", bare, 0.5)):
        yield Figure(
            what=what,
            database=stage.kind,
            unit="records/s",
            ours=ours,
            floor_is=floor_is,
            floor=floor,
            target=Target(">=", bound),
        )


def _posting(stage: Stage, address: str, sizes: Sizes) -> Measure:
    token = databases.token(stage.users.service)

    def measure() -> float:
        requests = [load.request("POST", "/usage/records", token, _body(stage, sizes)) for _ in range(sizes.requests)]
        return sizes.records * sizes.requests / load.run(address, requests)[-1]

    return measure


def _body(stage: Stage, sizes: Sizes) -> bytes:
    owners = itertools.cycle(stage.users.writers)
    usage = databases.USAGE
    records = [
        {
            "id": f"bench-{next(_numbers)}",
            "user_id": next(owners),
            "model": "gpt-4o-mini",
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "created_at": clock.now().isoformat(),
        }
        for _ in range(sizes.records)
    ]
    return json.dumps({"records": records}).encode()


def _inserting(stage: Stage, sizes: Sizes) -> Measure:
    """Measure committed rows per second.

    Each statement inserts as many rows as a request has records.
    """
    insert = _insert_sqlite if stage.is_sqlite else _insert_postgresql
    return lambda: insert(stage, sizes)


def _values(stage: Stage, sizes: Sizes) -> list[Any]:
    usage, now = databases.USAGE, clock.now()
    row = dict.fromkeys(COLUMNS)
    row |= {"role": "assistant", "created_at": now, "status": "complete", "model": "gpt-4o-mini"}
    row |= {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "cached_input_tokens": 0}
    row |= {"cost": usage.cost, "price_source": "bench", "usage_estimated": False, "usage_date": now.date()}
    owners = itertools.islice(itertools.cycle(stage.users.writers), sizes.records)
    rows = [row | {"user_id": owner, "idempotency_key": f"bare:{next(_numbers)}"} for owner in owners]
    return [value for row in rows for value in row.values()]


COLUMNS = [column.name for column in _MESSAGES.columns if column.name != "id"]


def _statement(placeholders: Iterator[str], sizes: Sizes) -> str:
    rows = ("(" + ", ".join(next(placeholders) for _ in COLUMNS) + ")" for _ in range(sizes.records))
    return f"INSERT INTO messages ({', '.join(COLUMNS)}) VALUES {', '.join(rows)}"


def _insert_sqlite(stage: Stage, sizes: Sizes) -> float:
    statement = _statement(itertools.repeat("?"), sizes)
    batches = [[_as_sqlite(value) for value in _values(stage, sizes)] for _ in range(sizes.requests)]
    with contextlib.closing(
        sqlite3.connect(str(stage.database.engine.url.database), isolation_level=None)
    ) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        started = time.perf_counter()
        for batch in batches:
            connection.execute(statement, batch)
        return sizes.records * sizes.requests / (time.perf_counter() - started)


def _as_sqlite(value: Any) -> Any:
    if value == databases.USAGE.cost:
        return int(value.scaleb(10))
    return str(value) if hasattr(value, "isoformat") else value


def _insert_postgresql(stage: Stage, sizes: Sizes) -> float:
    statement = _statement((f"${i}" for i in itertools.count(1)), sizes)
    batches = [_values(stage, sizes) for _ in range(sizes.requests)]

    async def insert() -> float:
        connection = await asyncpg.connect(stage.url)
        try:
            prepared = await connection.prepare(statement)
            started = time.perf_counter()
            for batch in batches:
                await prepared.fetch(*batch)
            return sizes.records * sizes.requests / (time.perf_counter() - started)
        finally:
            await connection.close()

    return stage.run(insert())
