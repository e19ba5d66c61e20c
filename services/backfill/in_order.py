"""Share a stream of items among workers; keep results in order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Worker = TypeVar("Worker")
Result = TypeVar("Result")


async def work_through(
    items: AsyncIterator[Item],
    workers: Sequence[Worker],
    work: Callable[[Worker, Item], Awaitable[Result]],
    take: Callable[[Item, Result], None],
) -> None:
    """Give each item to the first free worker, until the stream ends.

    `take` receives the items and their results in the order of the stream.

    Raises:
        Exception: the first error of the stream, `work` or `take`. All other work is cancelled.
    """
    next_item = asyncio.Lock()
    done: dict[int, tuple[Item, Result]] = {}
    begun = taken = 0

    async def keep_working(worker: Worker) -> None:
        nonlocal begun, taken
        while True:
            async with next_item:
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
                number, begun = begun, begun + 1
            done[number] = item, await work(worker, item)
            while taken in done:
                taken += 1
                take(*done.pop(taken - 1))

    tasks = [asyncio.create_task(keep_working(worker)) for worker in workers]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
