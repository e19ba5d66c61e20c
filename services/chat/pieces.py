"""Queue the pieces of a streamed answer for the caller.

The number of unread characters is bounded.
"""

import asyncio
from collections.abc import AsyncIterator

KEEP_ALIVE_SECONDS = 15.0

# Characters that a caller may leave unread. Beyond this number, the server stops reading from the model.
MAX_UNREAD = 2**18
# Characters that each piece counts in addition to its length.
_PIECE_OVERHEAD = 64
# Seconds for which the server does not read from the model. Then the server drops the caller.
UNREAD_SECONDS = 10.0


class Pieces:
    """All pieces of one answer, and a queue of the unread ones."""

    def __init__(self) -> None:
        self.is_dropped = False
        """Whether the caller did not read for too long and gets no more pieces."""
        self._added: list[str] = []
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._unread = 0
        self._has_room = asyncio.Event()

    def add(self, piece: str) -> None:
        """Add a piece; an empty one is ignored."""
        if not piece:
            return
        self._added.append(piece)
        if not self.is_dropped:
            self._count(piece, 1)
            self._queue.put_nowait(piece)

    def end(self) -> None:
        """End the caller's iteration after the last piece."""
        self._queue.put_nowait(None)

    def whole(self) -> str:
        """Return all pieces as one text."""
        return "".join(self._added)

    async def read(self) -> AsyncIterator[str]:
        """Yield the pieces as they arrive.

        Yield an empty piece after every `KEEP_ALIVE_SECONDS` without one.
        """
        while True:
            try:
                piece = await asyncio.wait_for(self._queue.get(), KEEP_ALIVE_SECONDS)
            except TimeoutError:
                piece = ""
            if piece is None:
                return
            if piece:
                self._count(piece, -1)
            yield piece

    async def wait_for_room(self) -> bool:
        """Wait until the caller has read, for at most `UNREAD_SECONDS`.

        Returns:
            False if this call dropped the caller.
        """
        if self._unread <= MAX_UNREAD or self.is_dropped:
            return True
        try:
            async with asyncio.timeout(UNREAD_SECONDS):
                await self._has_room.wait()
        except TimeoutError:
            self._drop()
        return not self.is_dropped

    def _drop(self) -> None:
        self.is_dropped, self._unread = True, 0
        while not self._queue.empty():
            self._queue.get_nowait()
        self.end()

    def _count(self, piece: str, sign: int) -> None:
        self._unread += sign * (len(piece) + _PIECE_OVERHEAD)
        if self._unread <= MAX_UNREAD:
            self._has_room.set()
        else:
            self._has_room.clear()
