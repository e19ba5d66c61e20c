"""What services send, as bytes: chunks, reports of usage, and ends."""

import json
from typing import Any


def usage(prompt: Any, completion: Any, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


def event(value: Any) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def chunk(delta: Any, reason: str | None = None, *, name: str = "gpt-4o", **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return event(
        {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": name, "choices": [choice]} | more
    )


DONE = b"data: [DONE]\n\n"
FAILED = {"code": "server_error", "message": "Provider disconnected unexpectedly"}
