"""Bound the connections of a process: in total, by address, by time."""

import asyncio
import logging
from collections import Counter
from http import HTTPStatus
from typing import NamedTuple, Protocol

from app.errors import ProblemError

logger = logging.getLogger("access")

RESERVE = 32
"""Connections above the limit that may request `/health` and `/ready`."""

SWEEP_SECONDS = 1.0


class Guarded(Protocol):
    """Define what the guard needs of a connection."""

    address: str
    is_in_reserve: bool
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport

    def check(self, now: float) -> None:
        """Close the connection if it exceeds a deadline."""


class Limits(NamedTuple):
    """Limit connections in total and by address (0: no limit)."""

    connections: int
    per_address: int


class Guard:
    """Register the connections of one process."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: set[Guarded] = set()
        self._waiting: dict[Guarded, None] = {}
        self._addresses: Counter[str] = Counter()
        self._is_full = False
        self._is_sweeping = False

    def admit(self, connection: Guarded) -> ProblemError | None:
        """Register a connection; above the limit close the longest idle one.

        Returns:
            The refusal of this connection, or None.
        """
        self._sweep_soon(connection.loop)
        self._open.add(connection)
        if connection.address:
            self._addresses[connection.address] += 1
            if 0 < self.limits.per_address < self._addresses[connection.address]:
                return refusal(503, "There are too many connections from this address.")
        if len(self._open) > self.limits.connections:
            self._say_full()
            if oldest := next(iter(self._waiting), None):
                self._forget(oldest)
                oldest.transport.abort()
            elif len(self._open) > self.limits.connections + RESERVE:
                return overload()
            else:
                connection.is_in_reserve = True
        self._waiting[connection] = None
        return None

    def wait(self, connection: Guarded) -> None:
        """Record that a connection waits for its next request."""
        if connection in self._open:
            self._waiting[connection] = None

    def work(self, connection: Guarded) -> None:
        """Record that a connection has sent the whole head of a request."""
        self._waiting.pop(connection, None)

    def release(self, connection: Guarded) -> None:
        """Record the end of a connection."""
        self._forget(connection)
        if connection.address:
            self._addresses[connection.address] -= 1
            if not self._addresses[connection.address]:
                del self._addresses[connection.address]

    def _forget(self, connection: Guarded) -> None:
        self._open.discard(connection)
        self._waiting.pop(connection, None)

    def _say_full(self) -> None:
        if not self._is_full:
            logger.warning("%d connections are open: closing idle ones for new ones", self.limits.connections)
        self._is_full = True

    def _sweep_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_sweeping:
            self._is_sweeping = True
            loop.call_later(SWEEP_SECONDS, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_sweeping = False
        if len(self._open) < self.limits.connections / 2:
            self._is_full = False
        now = loop.time()
        for connection in tuple(self._open):
            connection.check(now)
        if self._open:
            self._sweep_soon(loop)


def refusal(status: int, detail: str) -> ProblemError:
    """Make a problem of this status."""
    problem = ProblemError(detail)
    problem.status, problem.title = status, HTTPStatus(status).phrase
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        problem.headers = {"Retry-After": "1"}
    return problem


def overload() -> ProblemError:
    """Make the refusal of a connection above the limit."""
    return refusal(503, "The server has reached its limit of connections.")
