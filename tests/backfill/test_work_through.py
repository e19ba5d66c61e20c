"""Work that several share: taken in its order, each item once, all of it ended by a failure."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.backfill import key_ranges


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

    await key_ranges.work_through(numbers(100), range(3), work, lambda item, result: taken.append((item, result)))
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
        await key_ranges.work_through(items(), range(2), work, lambda number, _: fail_at("take", number))
    so_far = begun
    await asyncio.sleep(0.01)
    assert begun == so_far < 20
    assert len(asyncio.all_tasks()) == 1, "nobody goes on"
