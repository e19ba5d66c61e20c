"""An OpenAI-compatible HTTP server of the tests' own, whose every answer, and every failure, a test dictates."""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest import mock

from services.usage import service_addresses
from tests.support.accounts import SECRET_KEY

KEY = "key4711-of-the-tests-0815"

WAIT_SECONDS = 60.0
"""How long a test waits for something that should have happened, before it fails."""


def usage(input_tokens: int, output_tokens: int, cached_input_tokens: int = 0) -> dict[str, Any]:
    """Usage as OpenAI reports it; the cached tokens are part of the input."""
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_input_tokens, "audio_tokens": 0},
    }


def settings(database_url: str, model: "OpenAIServer", llm_model: str = "gpt-4o") -> dict[str, Any]:
    """The settings of an application that asks this service."""
    return {
        "database_url": database_url,
        "secret_key": SECRET_KEY,
        "llm_base_url": model.url,
        "llm_model": llm_model,
    }


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the server says next. Counts of chunks are of those with content."""

    content: str = "Hello there, how are you?"
    model: str | None = None
    """As reported in the answer; None: the one that was asked for."""
    usage: Mapping[str, Any] | None = field(default_factory=lambda: usage(10, 5))
    """None: the answer tells no usage, whatever was asked."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str = "the tests said so"
    delay: float = 0.0
    """Seconds before anything is sent."""
    chunk_delay: float = 0.0
    """Seconds before each chunk of a stream."""
    chunks: Sequence[str] | None = None
    """The content in pieces; None: word by word."""
    die_after: int | None = None
    """The number of chunks after which the connection breaks; without a stream: within the body."""
    stall_after: int | None = None
    """The number of chunks after which the service waits for `release`; without a stream it sends nothing before."""
    garbage: str | None = None
    """Sent instead of the body; in a stream as one event after `garbage_after` chunks."""
    garbage_after: int = 1
    cumulative_usage: bool = False
    """Each chunk of a stream tells the usage so far; the last one tells all of it."""
    done: bool = True
    """Whether a stream ends with `[DONE]`."""
    raw: Sequence[bytes] | None = None
    """The body byte by byte, in the parts in which it is sent, whatever was asked."""
    kind: str | None = None
    """The `Content-Type`; None: as the request wants it."""
    end: Literal["complete", "cut", "open"] = "complete"
    """How a raw body ends: cut without the last chunk of HTTP, or followed by nothing, until `release`."""

    @property
    def pieces(self) -> Sequence[str]:
        """The content of the chunks of a stream."""
        return re.findall(r"\s*\S+|\s+$", self.content) if self.chunks is None else self.chunks


@dataclass
class Received:
    """A request as it came, and what became of it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    is_answered: bool = False
    """All of the answer was sent."""
    is_left: bool = False
    """The caller hung up before the answer was complete."""


class OpenAIServer:
    """Lives in a thread of its own; `answer` may be changed at any time and is read once a request."""

    def __init__(self) -> None:
        self.answer: Answer | Callable[[dict[str, Any]], Answer] = Answer()
        self.requests: list[Received] = []
        self.url = ""
        self._failures: list[Exception] = []
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._stop = asyncio.Event()
        self._released = asyncio.Event()

    def release(self) -> None:
        """Lets all stalled answers go on, now and from now on."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._released.set)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Blocks until the condition holds, which is looked at when a request comes, ends or is left.

        In asynchronous tests: `await asyncio.to_thread(server.wait_until, …)`.

        Raises:
            TimeoutError: it did not within `WAIT_SECONDS`.
        """
        with self._changed:
            if not self._changed.wait_for(condition, WAIT_SECONDS):
                raise TimeoutError("what the test waits for did not happen")

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        async with server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            self._notify()
            await self._stop.wait()
            await self._hang_up()

    async def _hang_up(self) -> None:
        """Ends every connection, even one that was accepted a moment ago.

        asyncio leaves such a connection's socket open if the server is closed first (Python 3.11).
        """
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.wait(others, timeout=0.01)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            received = await _read(reader)
            self.requests.append(received)
            self._notify()
            answering = asyncio.ensure_future(self._respond(received, writer))
            leaving = asyncio.ensure_future(reader.read())  # nothing more is sent by the caller: ends when it hangs up
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            received.is_left = not answering.done()
            for task in (answering, leaving):
                task.cancel()
            ends = await asyncio.gather(answering, leaving, return_exceptions=True)
            self._failures += [end for end in ends if isinstance(end, Exception) and not isinstance(end, OSError)]
            self._notify()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            self._writers.remove(writer)

    async def _respond(self, received: Received, writer: asyncio.StreamWriter) -> None:
        answer = self.answer if isinstance(self.answer, Answer) else self.answer(received.body)
        parts: AsyncIterator[str | bytes | None]
        await asyncio.sleep(answer.delay)
        if answer.raw is not None:
            parts, kind = _raw(answer, self._released), "text/event-stream"
        elif answer.status == 200 and received.body.get("stream"):
            parts, kind = _events(answer, received.body, self._released), "text/event-stream"
        else:
            parts, kind = _body(answer, received.body, self._released), "application/json"
        head = f"HTTP/1.1 {answer.status} Of the tests\r\nContent-Type: {answer.kind or kind}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        writer.write(f"{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode())
        async for part in parts:
            if part is None:
                return  # without the last chunk of HTTP, which says that the answer is complete
            data = part.encode() if isinstance(part, str) else part
            if not data:  # an empty chunk would end the body
                continue
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        received.is_answered = True


@contextmanager
def running() -> Iterator[OpenAIServer]:
    """A server on a free port, with its thread; stops it, stalled answers and all, at the end.

    It stands for a vendor's service: within this process its address has list prices, although it is a local one.
    """
    server = OpenAIServer()
    thread = threading.Thread(target=server._run, name="openai-server")
    thread.start()
    try:
        server.wait_until(lambda: bool(server.url))
        with mock.patch.object(service_addresses, "is_local", return_value=False):
            yield server
    finally:
        assert server._loop is not None
        server._loop.call_soon_threadsafe(server._stop.set)
        thread.join()
    if server._failures:
        raise server._failures[0]


async def _read(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(first.split()[1], headers, json.loads(body or b"{}"))


async def _raw(answer: Answer, released: asyncio.Event) -> AsyncIterator[bytes | None]:
    assert answer.raw is not None
    for part in answer.raw:
        await asyncio.sleep(answer.chunk_delay)
        yield part
    if answer.end == "open":
        await released.wait()
    if answer.end == "cut":
        yield None


async def _body(answer: Answer, request: dict[str, Any], released: asyncio.Event) -> AsyncIterator[str | None]:
    """The parts of an answer in one piece; None stands for a broken connection."""
    if answer.stall_after is not None:
        await released.wait()
    if answer.garbage is not None:
        yield answer.garbage
        return
    if answer.status != 200:
        error = {"message": answer.error, "type": "error", "param": None, "code": None}
        yield json.dumps({"error": error})
        return
    message = {"role": "assistant", "content": answer.content}
    completion = _completion(answer, request, "chat.completion")
    completion["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
    if answer.usage is not None:
        completion["usage"] = answer.usage
    body = json.dumps(completion)
    if answer.die_after is not None:
        yield body[: len(body) // 2]
        yield None
    else:
        yield body


async def _events(answer: Answer, request: dict[str, Any], released: asyncio.Event) -> AsyncIterator[str | None]:
    """The parts of a stream; None stands for a broken connection."""
    yield _event(_chunk(answer, request, {"role": "assistant", "content": ""}))
    for sent, piece in enumerate((*answer.pieces, None)):
        if sent == answer.stall_after:
            await released.wait()
        if sent == answer.die_after:
            yield None
            return
        if answer.garbage is not None and sent == answer.garbage_after:
            yield f"data: {answer.garbage}\n\n"
        if piece is not None:
            await asyncio.sleep(answer.chunk_delay)
            so_far = {"usage": _usage_so_far(answer, sent + 1)} if answer.cumulative_usage else {}
            yield _event(_chunk(answer, request, {"content": piece}) | so_far)
    for event in _end(answer, request):
        yield event


def _end(answer: Answer, request: dict[str, Any]) -> Iterator[str]:
    yield _event(_chunk(answer, request, {}, finish_reason="stop"))
    if answer.usage is not None and (request.get("stream_options") or {}).get("include_usage"):
        yield _event(_completion(answer, request, "chat.completion.chunk") | {"choices": [], "usage": answer.usage})
    if answer.done:
        yield "data: [DONE]\n\n"


def _usage_so_far(answer: Answer, sent: int) -> dict[str, Any]:
    assert answer.usage is not None
    output_tokens = answer.usage["completion_tokens"] * sent // max(len(answer.pieces), 1)
    return {
        **answer.usage,
        "completion_tokens": output_tokens,
        "total_tokens": answer.usage["prompt_tokens"] + output_tokens,
    }


def _completion(answer: Answer, request: dict[str, Any], kind: str) -> dict[str, Any]:
    model = request.get("model") if answer.model is None else answer.model
    return {"id": "chatcmpl-of-the-tests", "object": kind, "created": 1_700_000_000, "model": model}


def _chunk(
    answer: Answer, request: dict[str, Any], delta: dict[str, Any], finish_reason: str | None = None
) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return _completion(answer, request, "chat.completion.chunk") | {"choices": [choice]}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
