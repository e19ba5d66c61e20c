"""Many who write at once, on connections and in processes of their own: none fails, and all is counted, once."""

import asyncio
import multiprocessing
import random
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from sqlalchemy import text

from app.db.database import Database
from services.usage import records
from services.usage.pricing import PriceList
from services.usage.records import UsageRecord
from tests.support import accounts, invariants
from tests.support.invariants import Totals, UserMonth

WRITERS = 64
MONTHS = [datetime(2023, month, 28, 12, tzinfo=UTC) for month in range(1, 13)]
PROCESSES = 4

Batch = Sequence[UsageRecord]


def records_of(owner: int, name: str, count: int, at: Sequence[datetime] = MONTHS[:1]) -> list[UsageRecord]:
    """Records with ids and figures of their own."""
    return [
        UsageRecord(
            id=f"{name} {i}",
            user_id=owner,
            model="a model without a price",
            input_tokens=1000 + i,
            output_tokens=10 * i,
            cost=Decimal(10 * i + 1).scaleb(-10),
            created_at=at[i % len(at)],
        )
        for i in range(count)
    ]


def sums(items: Iterable[UsageRecord]) -> dict[UserMonth, Totals]:
    """What the records amount to, each id counted once."""
    found: dict[UserMonth, Totals] = {}
    for item in {(item.user_id, item.id): item for item in items}.values():
        assert item.created_at is not None
        assert item.cost is not None
        key = item.user_id, f"{item.created_at:%Y-%m}"
        old = found.get(key, Totals())
        found[key] = Totals(
            old.input_tokens + item.input_tokens,
            old.output_tokens + item.output_tokens,
            old.total_tokens + item.input_tokens + item.output_tokens,
            old.total_cost + Fraction(item.cost),
            old.message_count + 1,
        )
    return found


async def store(database: Database, batch: Batch, attempts: list[int]) -> int:
    """Stores a batch as the router does, and notes each attempt; answers how many records were new."""

    async def work(session: Any) -> records.Recorded:
        attempts.append(len(batch))
        return await records.record(session, batch, PriceList(), UTC)

    return (await database.transaction(work, repeatable=True)).recorded


async def write(database: Database, writers: Sequence[Sequence[Batch]]) -> None:
    """All writers at once, each one batch after the other; each record is new to exactly one of them."""
    attempts: list[int] = []

    async def one(batches: Sequence[Batch]) -> int:
        return sum([await store(database, batch, attempts) for batch in batches])

    new = await asyncio.gather(*(one(batches) for batches in writers))
    everything = [item for batches in writers for batch in batches for item in batch]
    assert sum(new) == len({(item.user_id, item.id) for item in everything})
    assert await invariants.check(database) == sums(everything)
    if database.engine.dialect.name == "postgresql":
        assert len(attempts) == sum(map(len, writers)), "locks are taken in one order, so no deadlock is ever resolved"


def shuffled(items: Iterable[UsageRecord], seed: int) -> list[UsageRecord]:
    """Copies, as of another request, in an order of their own."""
    copies = [replace(item) for item in items]
    random.Random(seed).shuffle(copies)
    return copies


@pytest.mark.parametrize("days", [1, 28], ids=["one day", "all days"])
@pytest.mark.sampled(1)
async def test_64_writers_of_one_users_month_are_all_counted(database: Database, days: int) -> None:
    """On days of their own no other lock keeps them from meeting at the month."""
    owner = (await accounts.add(database, "ayu")).id
    at = [MONTHS[0].replace(day=day + 1) for day in range(days)]
    writers = [[[item] for item in records_of(owner, f"writer {i}", 3, [at[i % days]])] for i in range(WRITERS)]
    await write(database, writers)


async def test_64_writers_of_different_users_are_all_counted(database: Database) -> None:
    owners = [(await accounts.add(database, f"user{i}")).id for i in range(WRITERS)]
    await write(database, [[[item] for item in records_of(owner, "record", 3)] for owner in owners])


@pytest.mark.long
async def test_overlapping_batches_of_one_user_are_counted_once(database: Database) -> None:
    owner = (await accounts.add(database, "ayu")).id
    shared = records_of(owner, "shared", 36, MONTHS)
    writers = []
    for i in range(WRITERS):
        own = records_of(owner, f"writer {i}", 12, MONTHS)
        writers.append([shuffled([*own[:6], *shared], i), shuffled([*own, *shared[i % 12 :: 12]], -i)])
    await write(database, writers)


async def test_overlapping_batches_of_many_users_are_counted_once(database: Database) -> None:
    owners = [(await accounts.add(database, f"user{i}")).id for i in range(WRITERS)]
    shared = [item for owner in owners for item in records_of(owner, "shared", 2, MONTHS)]
    writers = []
    for i, owner in enumerate(owners):
        own = records_of(owner, "own", 3, MONTHS)
        some = random.Random(i).sample(shared, 40)
        writers.append([shuffled([*own, *some], i), shuffled(some[20:] + own[1:], -i)])
    await write(database, writers)


async def test_writers_whose_transactions_fail_leave_nothing_behind(database: Database) -> None:
    owner = (await accounts.add(database, "ayu")).id
    kept, given_up = records_of(owner, "kept", WRITERS), records_of(owner, "given up", WRITERS)

    async def give_up(item: UsageRecord) -> None:
        async def work(session: Any) -> None:
            await records.record(session, [item], PriceList(), UTC)
            raise KeyError(item.id)

        with pytest.raises(KeyError):
            await database.transaction(work)

    attempts: list[int] = []
    writing = [store(database, [item], attempts) for item in kept]
    await asyncio.gather(*writing, *(give_up(item) for item in given_up))
    assert await invariants.check(database) == sums(kept)


_barrier: threading.Barrier | None = None


def _begin(barrier: threading.Barrier) -> None:
    global _barrier
    _barrier = barrier


def _write_in_a_process(url: str, owner: int, name: str) -> int:
    """Waits for the other processes, then writes records of its own and the ones that all of them send."""

    async def run() -> int:
        database = Database.open(url)
        own, shared = records_of(owner, name, 24), records_of(owner, "shared", 12)
        try:
            assert _barrier is not None
            await asyncio.to_thread(_barrier.wait, 60)
            batches = [[own[i], own[i + 12], shared[i]] for i in range(12)]
            return sum(await asyncio.gather(*(store(database, batch, []) for batch in batches)))
        finally:
            await database.close()

    return asyncio.run(run())


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.long
async def test_processes_that_write_to_one_file_at_once_all_succeed(database: Database, database_url: str) -> None:
    owner = (await accounts.add(database, "ayu")).id
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, spawn, _begin, (spawn.Barrier(PROCESSES),)) as pool:
        names = [f"process {i}" for i in range(PROCESSES)]
        new = list(pool.map(_write_in_a_process, [database_url] * PROCESSES, [owner] * PROCESSES, names))
    everything = records_of(owner, "shared", 12) + [item for name in names for item in records_of(owner, name, 24)]
    assert sum(new) == len(everything)
    assert await invariants.check(database) == sums(everything)
    async with database.reads() as session:
        assert await session.scalar(text("PRAGMA integrity_check")) == "ok"
