"""`python -m benchmarks.upstream`: serve a model that streams its sending times.

Each piece holds the time at which the service sends it. A request without streaming receives one whole response. The
model `LONG_WINDED` streams 4 MB as fast as the client reads. An argument sets the pause between two pieces, in seconds.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

PIECES = 20
PAUSE_SECONDS = float(sys.argv[1]) if __name__ == "__main__" and sys.argv[1:] else 0.005
LONG_WINDED = "long-winded"
LONG_PIECES = ["long " * 13_000] * 64

_COMMON = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini"}
_COUNTS = {"prompt_tokens": 10, "completion_tokens": PIECES, "total_tokens": 10 + PIECES}


async def _answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one persistent connection."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r")[0]
            asked = json.loads(await reader.readexactly(int(length or 0)) or b"{}")
            if asked.get("stream"):
                await _stream(writer, LONG_PIECES if asked["model"] == LONG_WINDED else [""] * PIECES)
            else:
                await _answer(writer)
    writer.close()


async def _answer(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(PIECES * PAUSE_SECONDS)
    message = {"role": "assistant", "content": f"{time.monotonic_ns()} " * PIECES}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = json.dumps({**_COMMON, "object": "chat.completion", "choices": [choice], "usage": _COUNTS}).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()


async def _stream(writer: asyncio.StreamWriter, pieces: Sequence[str]) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in pieces:
        writer.write(_chunk(_event({"choices": [_choice(piece or f"{time.monotonic_ns()} ")]})))
        await writer.drain()
        await asyncio.sleep(0 if piece else PAUSE_SECONDS)
    last = _event({"choices": [_choice(None)]}) + _event({"choices": [], "usage": _COUNTS}) + b"data: [DONE]\n\n"
    writer.write(_chunk(last) + _chunk(b""))
    await writer.drain()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _choice(content: str | None) -> dict[str, Any]:
    if content is None:
        return {"index": 0, "delta": {}, "finish_reason": "stop"}
    return {"index": 0, "delta": {"content": content}, "finish_reason": None}


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(_COMMON | data)}\n\n".encode()


async def _serve() -> None:
    server = await asyncio.start_server(_answer_all, "127.0.0.1", 0)
    sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
