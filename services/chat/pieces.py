"""The pieces of a streamed answer on their way to the caller: a queue with a bound on what is unread."""

import asyncio
from collections.abc import AsyncIterator

KEEP_ALIVE_SECONDS = 15.0

# Characters that a caller may leave unread. Beyond them, the model is not read.
MAX_UNREAD = 2**18
# Characters that each piece counts in addition to its own.
_PIECE_OVERHEAD = 64
# Seconds that the model is not read; then the caller is dropped.
UNREAD_SECONDS = 10.0


class Pieces:
    """One answer's pieces: all that were added, and those that the caller has yet to read."""

    def __init__(self) -> None:
        self.is_dropped = False
        """Whether the caller did not read for too long, and gets no more."""
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
        """Let the caller's reading end."""
        self._queue.put_nowait(None)

    def whole(self) -> str:
        """Return all pieces that were added, as one text."""
        return "".join(self._added)

    async def read(self) -> AsyncIterator[str]:
        """Yield the pieces as they come, and an empty one every `KEEP_ALIVE_SECONDS` of silence."""
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
            False if the caller was dropped just now.
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
