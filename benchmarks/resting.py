"""Measure a server's start, and its memory at rest and under attack."""

import contextlib
import time
from collections.abc import Iterator

import psutil

from benchmarks import databases, load, servers, upstream
from benchmarks.figures import Figure
from benchmarks.sizes import Sizes
from benchmarks.stages import Stage

_SAMPLES, _SAMPLE_SECONDS = 15, 0.2
_RECEIVED_BYTES = 4_096


def figures(stage: Stage, sizes: Sizes) -> Iterator[Figure]:
    """Yield all rows of a stage."""
    seconds: list[float] = []
    megabytes: list[float] = []
    for _ in range(sizes.starts):
        started = time.perf_counter()
        with servers.started(stage.url) as server:
            address = server.wait_until_ready()
            seconds.append(time.perf_counter() - started)
            load.run(address, [load.request("GET", "/auth/me", databases.token(stage.users.year))])
            megabytes.append(psutil.Process(server.process.pid).memory_info().rss / 2**20)
    yield Figure(what="start of `python main.py` to ready", database=stage.kind, unit="s", ours=seconds)
    yield Figure(what="memory of one worker at rest", database=stage.kind, unit="MiB", ours=megabytes)
    rest, attacked = zip(*(_attacked(stage, sizes.unread) for _ in range(sizes.starts)), strict=True)
    yield Figure(
        what=f"memory of one worker beside {sizes.unread} streams of 4 MB that are not read",
        database=stage.kind,
        unit="MiB",
        ours=attacked,
        floor_is="at rest",
        floor=rest,
        by_difference=True,
    )


def _attacked(stage: Stage, streams: int) -> tuple[float, float]:
    """Return the memory before and during the unread streams, in MiB."""
    asking = load.request("POST", "/chat", databases.token(stage.users.few), b'{"message": "Hi"}')
    model = {"LLM_BASE_URL": stage.model, "LLM_API_KEY": "none", "LLM_MODEL": upstream.LONG_WINDED}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(servers.started(stage.url, **model))
        address = server.wait_until_ready()
        load.run(address, [load.request("GET", "/auth/me", databases.token(stage.users.few))])
        process = psutil.Process(server.process.pid)
        rest = process.memory_info().rss
        for _ in range(streams):
            stack.enter_context(load.connect(address, _RECEIVED_BYTES)).sendall(asking)
        most = 0
        for _ in range(_SAMPLES):
            time.sleep(_SAMPLE_SECONDS)
            most = max(most, process.memory_info().rss)
        server.process.kill()  # a graceful shutdown would wait for the streams
        return rest / 2**20, most / 2**20
