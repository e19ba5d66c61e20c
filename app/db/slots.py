"""Limit each kind of database work, so that none starves another."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# The fewest connections of one process: one for each kind of work, one for urgent transactions, and one for `/ready`.
LEAST_CONNECTIONS = 5


class Slots:
    """The slots of one database, each kind assigned in order of arrival."""

    def __init__(self, connections: int, *, one_writer: bool) -> None:
        """Divide the connections; with `one_writer`, for SQLite, urgent transactions queue too.

        While a lock blocks all work of one kind, the others continue.
        """
        shared = connections - 2
        readers = max(shared * 2 // 9, 1)
        self.writers = asyncio.Semaphore(1 if one_writer else shared - 2 * readers)
        self.urgent = self.writers if one_writer else asyncio.Semaphore(1)
        self.readers = asyncio.Semaphore(readers)
        self.single = asyncio.Semaphore(readers)


@asynccontextmanager
async def hold(slots: asyncio.Semaphore, seconds: float) -> AsyncIterator[None]:
    """Hold a slot.

    Raises:
        TimeoutError: no slot became free within `seconds`.
    """
    if slots.locked():
        async with asyncio.timeout(seconds):
            await slots.acquire()
    else:  # at once: a timer would cost more than the slot
        await slots.acquire()
    try:
        yield
    finally:
        slots.release()
