"""Limit each kind of database work, so that none starves another."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# PostgreSQL connections of one process, and how many of them each kind of work may hold. While a lock blocks all of one
# kind, the others continue. One more is for urgent transactions, and one for `/ready`.
CONNECTIONS = 20
WRITERS = 10
READERS = 4
SINGLE_READS = 4


class Slots:
    """The slots of one database, each kind assigned in order of arrival."""

    def __init__(self, *, one_writer: bool) -> None:
        """Make all slots; with `one_writer`, for SQLite, urgent transactions queue too."""
        self.writers = asyncio.Semaphore(1 if one_writer else WRITERS)
        self.urgent = self.writers if one_writer else asyncio.Semaphore(1)
        self.readers = asyncio.Semaphore(READERS)
        self.single = asyncio.Semaphore(SINGLE_READS)


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
