"""Measure the memory of a worker under hostile load and at rest."""

import contextlib
import functools
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures

import psutil
from sqlalchemy import insert

from app import clock
from benchmarks import databases, load, servers, upstream
from benchmarks.figures import Figure, Target
from benchmarks.sizes import Sizes
from benchmarks.stages import Stage
from models import Conversation, Message

READERS = 10
_MEBIBYTE = 2**20
# Bytes of each message of the largest conversation, and how many it has at most: 76 MB.
_MESSAGE_BYTES, _MESSAGES = 100_000, 760
_UNREAD_SECONDS = 3.0
_RECEIVED_BYTES = 4_096
_SAMPLE_SECONDS = 0.005
_INVENTED = "fbk_1_invented"
_TARGET = Target("<=", 2.5)

Load = Callable[[str, contextlib.ExitStack], None]
"""Takes the server's address, and the stack that closes connections once the memory is measured."""


def figures(stage: Stage, sizes: Sizes) -> Iterator[Figure]:
    """All rows of a stage."""
    messages = min(_MESSAGES, sizes.many)
    talk = stage.run(_store(stage, messages))
    token = databases.token(stage.users.few)
    megabytes = messages * _MESSAGE_BYTES // 10**6
    loads: dict[str, Load] = {
        f"{READERS} readers of a conversation of {megabytes} MB": functools.partial(
            _read, f"/conversations/{talk}", token
        ),
        f"{sizes.unread} unread streams of 4 MB": functools.partial(_leave_unread, token, sizes.unread),
        f"{READERS} bodies of 4 MB with an invented key": _post_large_bodies,
    }
    for what, put in loads.items():
        measured = [_measured(stage, put) for _ in range(sizes.starts)]
        yield Figure(
            what=f"memory of one worker, {what}",
            database=stage.kind,
            unit="MiB",
            ours=[peak for peak, _ in measured],
            floor_is="at rest",
            floor=[rest for _, rest in measured],
            target=_TARGET,
        )


async def _store(stage: Stage, messages: int) -> str:
    talk, user, now = str(uuid.uuid4()), stage.users.few, clock.now()
    row = {"conversation_id": talk, "user_id": user, "role": "user", "created_at": now, "content": "x" * _MESSAGE_BYTES}
    async with stage.database.sessions.begin() as session:
        await session.execute(insert(Conversation).values(id=talk, user_id=user, title="t", model_type="Standard"))
        await session.execute(insert(Message), [row] * messages)
    return talk


def _measured(stage: Stage, put: Load) -> tuple[float, float]:
    """Return a new server's peak memory, and that at rest, in MiB."""
    model = {"LLM_BASE_URL": stage.model, "LLM_API_KEY": "none", "LLM_MODEL": upstream.LONG_WINDED}
    quiet = servers.started(stage.url, LOG_LEVEL="CRITICAL", **model)
    with quiet as server, contextlib.ExitStack() as connections, futures.ThreadPoolExecutor() as pool:
        address = server.wait_until_ready()
        process = psutil.Process(server.process.pid)
        rest = peak = process.memory_info().rss
        loading = pool.submit(put, address, connections)
        while not loading.done():
            peak = max(peak, process.memory_info().rss)
            time.sleep(_SAMPLE_SECONDS)
        loading.result()
        server.process.kill()  # an orderly end would await the streams
    return peak / _MEBIBYTE, rest / _MEBIBYTE


def _read(path: str, token: str, address: str, _: contextlib.ExitStack) -> None:
    load.run(address, [load.request("GET", path, token)] * READERS, READERS)


def _leave_unread(token: str, streams: int, address: str, connections: contextlib.ExitStack) -> None:
    asking = load.request("POST", "/chat", token, b'{"message": "Hi"}')
    for _ in range(streams):
        connections.enter_context(load.connect(address, _RECEIVED_BYTES)).sendall(asking)
    time.sleep(_UNREAD_SECONDS)


def _post_large_bodies(address: str, _: contextlib.ExitStack) -> None:
    request = load.request("POST", "/usage/records", _INVENTED, b'{"records": [' + b"{}," * 1_400_000 + b"{}]}")
    with futures.ThreadPoolExecutor(READERS) as pool:
        list(pool.map(_post, [address] * READERS, [request] * READERS))


def _post(address: str, request: bytes) -> None:
    with contextlib.suppress(ConnectionError), load.connect(address) as connection:
        connection.sendall(request)
        connection.recv(65_536)
