"""A kept connection that the service closes when the next request is sent costs neither an answer nor money."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.errors import UpstreamError
from services.chat import kept_connections
from services.chat.openai_upstream import OpenAIUpstream, Timeouts
from services.chat.upstream import Reply

COMPLETION = json.dumps(
    {
        "model": "gpt-4o",
        "choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
).encode()
HEAD = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(COMPLETION)}\r\n\r\n".encode()


class Service:
    """Answers the first request of each connection, and none after it."""

    def __init__(self, delay: float, *, aborts: bool) -> None:
        self.delay = delay
        self.aborts = aborts
        self.requests = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        await self.receive(reader)
        writer.write(HEAD + COMPLETION)
        await self.receive(reader)
        await asyncio.sleep(self.delay)
        if self.aborts:
            writer.transport.abort()
        writer.close()

    async def receive(self, reader: asyncio.StreamReader) -> None:
        """Receive a request."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        self.requests += 1


@asynccontextmanager
async def upstream_of(service: Service) -> AsyncIterator[OpenAIUpstream]:
    """An upstream that asks the service."""
    async with await asyncio.start_server(service.connected, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        upstream = OpenAIUpstream(f"http://127.0.0.1:{port}/v1", "", "gpt-4o", Timeouts())
        try:
            yield upstream
        finally:
            await upstream.close()


async def ask(upstream: OpenAIUpstream) -> Reply:
    """Ask for a whole answer."""
    return await upstream.ask([{"role": "user", "content": "Hi"}], "gpt-4o", None)


@pytest.mark.parametrize("aborts", [True, False], ids=["reset", "closed"])
async def test_a_request_that_was_not_received_is_repeated(aborts: bool) -> None:
    service = Service(0, aborts=aborts)
    async with upstream_of(service) as upstream:
        assert [(await ask(upstream)).content for _ in range(3)] == ["Hi"] * 3
    assert service.requests == 5, "the second and the third were sent twice"


@pytest.mark.parametrize("aborts", [True, False], ids=["reset", "closed"])
async def test_a_request_that_is_dropped_later_may_be_billed(monkeypatch: pytest.MonkeyPatch, aborts: bool) -> None:
    monkeypatch.setattr(kept_connections, "_STALE_SECONDS", 0.1)
    service = Service(0.3, aborts=aborts)
    async with upstream_of(service) as upstream:
        await ask(upstream)
        with pytest.raises(UpstreamError) as raised:
            await ask(upstream)
    assert raised.value.accepted
    assert service.requests == 2
