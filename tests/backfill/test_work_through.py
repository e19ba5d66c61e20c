"""Ranges that several readers share: taken in their order, each once, all of it ended by a failure."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.backfill import key_ranges
from services.backfill.deficits import KeyRange


async def users(last: int) -> AsyncIterator[KeyRange]:
    for number in range(last):
        yield KeyRange(number, number)


def leave(_month: object, _why: str) -> None:
    raise AssertionError


async def test_what_several_do_is_taken_in_its_order_and_each_item_once() -> None:
    running = most = 0
    taken: list[tuple[int, int]] = []

    async def read(reader: int, key_range: KeyRange) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (key_range.first_user % 3))
        running -= 1
        return -key_range.first_user

    def take(key_range: KeyRange, result: int) -> None:
        taken.append((key_range.first_user, result))

    await key_ranges.compare(users(100), range(3), read, take, leave)
    assert taken == [(number, -number) for number in range(100)]
    assert most == 3


@pytest.mark.parametrize("where", ["ranges", "read", "take"])
async def test_a_failure_anywhere_ends_all_of_it(where: str) -> None:
    begun = 0

    def fail_at(place: str, key_range: KeyRange) -> None:
        if place == where and key_range.first_user == 5:
            raise LookupError

    async def ranges() -> AsyncIterator[KeyRange]:
        async for key_range in users(100):
            fail_at("ranges", key_range)
            yield key_range

    async def read(_reader: int, key_range: KeyRange) -> None:
        nonlocal begun
        begun += 1
        fail_at("read", key_range)
        await asyncio.sleep(0)

    with pytest.raises(LookupError):
        await key_ranges.compare(ranges(), range(2), read, lambda key_range, _: fail_at("take", key_range), leave)
    so_far = begun
    await asyncio.sleep(0.01)
    assert begun == so_far < 20
    assert len(asyncio.all_tasks()) == 1, "nobody goes on"
