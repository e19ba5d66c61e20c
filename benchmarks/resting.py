"""Measure a server's start, and its memory at rest."""

import time
from collections.abc import Iterator

import psutil

from benchmarks import databases, load, servers
from benchmarks.figures import Figure
from benchmarks.sizes import Sizes
from benchmarks.stages import Stage


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
