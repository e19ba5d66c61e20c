"""A server that starts quickly: the product's way of serving, around an application that answers with its process id.

`BREAK` names a file: while the file exists, workers fail. `STARTING` names a directory: a process that starts puts a
file there, and goes no further. `/slow` is answered after a second.
"""

import asyncio
import logging
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from app import logs, serving
from app.errors import ConfigurationError
from routers.http.connections import Connection
from routers.http.guard import Guard, Limits

logger = logging.getLogger("small")


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer, with a long line in the log."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        logger.info("closed in order")
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    logger.info("x" * 200)
    body = str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def make_config() -> uvicorn.Config:
    """Make the configuration of a process that serves."""
    logs.configure("INFO", "text")
    if (broken := os.environ.get("BREAK")) and Path(broken).exists():
        raise ConfigurationError("something is broken")
    if directory := os.environ.get("STARTING"):
        (Path(directory) / str(os.getpid())).touch()
        time.sleep(60)
    protocol: Any = partial(Connection, Guard(Limits(serving.connections_possible(), 0)))
    return uvicorn.Config(app, http=protocol, ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=5)


if __name__ == "__main__":
    logs.configure("INFO", "text")
    with serving.listen("127.0.0.1", int(sys.argv[1])) as listener:
        serving.run(make_config, listener, int(sys.argv[2]), grace_seconds=1)
