"""How the model's service is reached: kept connections, redirects, proxies, and credentials in the URL."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

import pytest

from app.errors import UpstreamError
from services.chat.openai_upstream import OpenAIUpstream, Timeouts
from services.chat.tokenizer import Prompt

PROMPTS: list[Prompt] = [{"role": "user", "content": "Hello"}]
BODY = json.dumps(
    {
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()


class Service:
    """A service of bytes: what it was sent, over how many connections, and what it answers."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        self.redirects: list[str] = []
        self.headers: Sequence[str] = ()
        self.idle_seconds: float | None = None
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests.append((first, headers, body))
                writer.write(self._answer())
                await writer.drain()
                if self.idle_seconds is not None:
                    await asyncio.sleep(self.idle_seconds)
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self) -> bytes:
        if self.redirects:
            location = self.redirects.pop(0)
            return f"HTTP/1.1 307 Elsewhere\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
        head = ["HTTP/1.1 200 OK", "Content-Type: application/json", f"Content-Length: {len(BODY)}", *self.headers]
        return "\r\n".join([*head, "", ""]).encode() + BODY

    @property
    def url(self) -> str:
        """The base URL of its API."""
        return f"http://{self.address}/v1"

    def sent(self, header: str) -> Sequence[str | None]:
        """A header of all requests."""
        return [headers.get(header) for _, headers, _ in self.requests]


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """A service."""
    async for started in _started():
        yield started


@pytest.fixture
async def other() -> AsyncIterator[Service]:
    """Another one."""
    async for started in _started():
        yield started


async def _started() -> AsyncIterator[Service]:
    service = Service()
    async with await asyncio.start_server(service.serve, "127.0.0.1", 0) as server:
        service.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield service


async def ask(url: str, times: int = 1, pause: float = 0.0) -> None:
    upstream = OpenAIUpstream(url, "sk-of-the-test", "", Timeouts())
    try:
        for _ in range(times):
            assert (await upstream.ask(PROMPTS, "m", None)).content == "Hi"
            await asyncio.sleep(pause)
    finally:
        await upstream.close()


async def test_one_connection_serves_many_requests(service: Service) -> None:
    await ask(service.url, times=5)
    assert (service.connections, len(service.requests)) == (1, 5)


async def test_a_connection_that_the_service_closed_is_not_used(service: Service) -> None:
    service.idle_seconds = 0.01
    await ask(service.url, times=3, pause=0.05)
    assert (service.connections, len(service.requests)) == (3, 3)


async def test_a_redirect_is_followed_with_body_and_key(service: Service) -> None:
    service.redirects = ["/v2/chat/completions"]
    await ask(service.url)
    assert [first for first, _, _ in service.requests] == [
        "POST /v1/chat/completions HTTP/1.1",
        "POST /v2/chat/completions HTTP/1.1",
    ]
    assert service.requests[0][2] == service.requests[1][2]
    assert service.sent("authorization") == ["Bearer sk-of-the-test"] * 2


async def test_another_host_does_not_receive_the_key(service: Service, other: Service) -> None:
    service.redirects = [other.url]
    await ask(service.url)
    assert other.sent("authorization") == [None]


async def test_a_request_that_is_redirected_without_end_counts_nothing(service: Service) -> None:
    service.redirects = ["/v1/chat/completions"] * 20
    with pytest.raises(UpstreamError, match="redirects") as failed:
        await ask(service.url)
    assert not failed.value.accepted


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.0\r\n", b"\x15\x03\x01\x00\x02\x02\x46"], ids=["SSH", "TLS"])
async def test_a_peer_that_does_not_speak_http_counts_nothing(said: bytes) -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        with pytest.raises(UpstreamError) as failed:
            await ask(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    assert not failed.value.accepted


async def test_a_proxy_of_the_environment_is_used(
    service: Service, other: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{other.address}")
    monkeypatch.setenv("NO_PROXY", service.address.partition(":")[0])
    await ask("http://model.example/v1")
    assert [first for first, _, _ in other.requests] == ["POST http://model.example/v1/chat/completions HTTP/1.1"]
    await ask(service.url)
    assert (len(other.requests), len(service.requests)) == (1, 1)


async def test_credentials_in_the_url_replace_the_key(service: Service) -> None:
    await ask(f"http://me:secret@{service.address}/v1")
    assert service.sent("authorization") == ["Basic bWU6c2VjcmV0"]


@pytest.mark.parametrize(("many", "size"), [(1, 40_000), (500, 20)])
async def test_long_and_many_headers_are_read(service: Service, many: int, size: int) -> None:
    service.headers = [f"X-Policy-{number}: {'x' * size}" for number in range(many)]
    await ask(service.url)


async def test_nothing_but_the_request_is_sent(service: Service) -> None:
    await ask(service.url)
    [(_, headers, body)] = service.requests
    assert headers.keys() - {"accept-encoding", "host", "content-length"} == {
        "accept",
        "authorization",
        "content-type",
        "user-agent",
    }
    assert headers["user-agent"] == "foundation-be"
    assert json.loads(body) == {"model": "m", "messages": PROMPTS}
