"""Sessions that read the same moment, and work that several share."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from app import snapshots
from app.database import Database
from services import in_order
from tests.test_backfill import execute

COUNT = text("SELECT count(*) FROM foundation_settings WHERE name LIKE 'number %'")


async def write_without_end(database: Database) -> None:
    number = 0
    while True:
        number += 1
        await execute(database, f"INSERT INTO foundation_settings (name, value) VALUES ('number {number}', '')")
        await asyncio.sleep(0.001)


async def test_all_sessions_see_the_same_whatever_is_written_meanwhile(database: Database) -> None:
    writing = asyncio.create_task(write_without_end(database))
    seen = []
    for _ in range(30):
        async with snapshots.open_same(database, 3) as sessions:
            await asyncio.sleep(0.005)
            counts = [await session.scalar(COUNT) for session in (*sessions, *sessions)]
            assert len(set(counts)) == 1
            seen.append(counts[0])
    assert not writing.done()
    writing.cancel()
    assert seen[-1] > seen[0], "somebody wrote"


async def numbers(last: int) -> AsyncIterator[int]:
    for number in range(last):
        yield number


async def test_what_several_do_is_taken_in_its_order_and_each_item_once() -> None:
    running = most = 0
    taken: list[tuple[int, int]] = []

    async def work(worker: int, number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (number % 3))
        running -= 1
        return -number

    await in_order.work_through(numbers(100), range(3), work, lambda item, result: taken.append((item, result)))
    assert taken == [(number, -number) for number in range(100)]
    assert most == 3


@pytest.mark.parametrize("where", ["items", "work", "take"])
async def test_a_failure_anywhere_ends_all_of_it(where: str) -> None:
    begun = 0

    def fail_at(place: str, number: int) -> None:
        if place == where and number == 5:
            raise LookupError

    async def items() -> AsyncIterator[int]:
        async for number in numbers(100):
            fail_at("items", number)
            yield number

    async def work(_worker: int, number: int) -> None:
        nonlocal begun
        begun += 1
        fail_at("work", number)
        await asyncio.sleep(0)

    with pytest.raises(LookupError):
        await in_order.work_through(items(), range(2), work, lambda number, _: fail_at("take", number))
    so_far = begun
    await asyncio.sleep(0.01)
    assert begun == so_far < 20
    assert len(asyncio.all_tasks()) == 1, "nobody goes on"
