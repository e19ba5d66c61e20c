"""Read an answer from its connection until the answer is complete."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import aiohttp

from services.chat.completions import Completion
from services.chat.event_streams import Event, Events, Unreadable

_ERROR_BYTES = 65_536

# Seconds to wait for the rest of the body once there is a finish reason; and once there is usage as well, an error, or
# `[DONE]`.
_FINISHED_SECONDS = 5.0
_REPORTED_SECONDS = 0.25

Hear = Callable[[str], None]
"""Receives each piece of an answer as the piece arrives."""


async def read_error(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of an error response, up to 64 KiB."""
    body = bytearray()
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with asyncio.timeout(_FINISHED_SECONDS):
            async for part in response.content.iter_any():
                body += part
                if len(body) > _ERROR_BYTES:
                    break
    return bytes(body[:_ERROR_BYTES])


async def listen(
    response: aiohttp.ClientResponse, completion: Completion, hear: Hear | None, room: Callable[[], Awaitable[None]]
) -> None:
    """Read an answer until it is complete.

    Do not wait until the connection closes, since some services leave connections open.

    Raises:
        aiohttp.ClientError: the connection failed before the answer was complete.
        Unreadable: the body ended before the answer was complete, or is not an answer.
    """
    events, parts = Events(), response.content.iter_any()
    failure: aiohttp.ClientError | Unreadable | None = None
    data: bytes | None = b""
    ends = math.inf
    while data is not None and not completion.is_truncated:
        ends = min(ends, asyncio.get_running_loop().time() + _patience(completion))
        try:
            data = await _next(parts, ends)
        except aiohttp.ClientError as error:
            failure, data = error, None
        try:
            if _read(events.end() if data is None else events.feed(data), completion, hear):
                ends = math.inf  # some services send a finish reason with every piece
        except Unreadable as error:
            failure, data = error, None
        ends += await _seconds(room)
    if not completion.is_whole:
        if failure is None:
            completion.take_for_error()
        raise failure or Unreadable("the body ended before the answer")


async def _seconds(room: Callable[[], Awaitable[None]]) -> float:
    """Wait for room and return the seconds waited."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await room()
    return loop.time() - began


def _read(events: Iterable[Event], completion: Completion, hear: Hear | None) -> bool:
    """Add the events to the answer; return whether they held any text."""
    has_text = False
    for event in events:
        if completion.is_truncated:
            break
        if piece := completion.add(event):
            has_text = True
            if hear is not None:
                hear(piece)
    return has_text


def _patience(completion: Completion) -> float:
    """Return for how many seconds to wait for more."""
    if completion.has_ended or completion.error is not None or (completion.is_finished and completion.is_reported):
        return _REPORTED_SECONDS
    return _FINISHED_SECONDS if completion.is_finished else math.inf


async def _next(parts: AsyncIterator[bytes], ends: float) -> bytes | None:
    """Return the next bytes; None at the end or at the deadline."""
    if ends == math.inf:
        return await anext(parts, None)
    try:
        async with asyncio.timeout_at(ends):
            return await anext(parts, None)
    except TimeoutError:
        return None
