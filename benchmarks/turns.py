"""Measure whole chat turns: rate, waiting, and processor time.

The model answers at once, so that only the backend and its database work. The processor time is that of the server
process, which includes the database on SQLite.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks import databases, load, servers
from benchmarks.figures import Figure, Target, by_turns
from benchmarks.servers import Server
from benchmarks.sizes import Sizes
from benchmarks.stages import Stage

MEMORY_TURNS = 1_000
_MODEL = {"LLM_API_KEY": "none", "LLM_MODEL": "gpt-4o-mini"}
_UNITS = {"turns per second": "/s", "processor time": "ms", "p50": "ms", "p99": "ms"}
_CONSTANT = "without database and model"


class Load(NamedTuple):
    """Describe a load: turns of some users over some connections."""

    connections: int
    users: int
    stream: bool = False

    def __str__(self) -> str:
        """Return the words of a row."""
        users = "one user" if self.users == 1 else f"{self.users} users"
        kind = "streamed" if self.stream else "whole"
        connections = "one connection" if self.connections == 1 else f"{self.connections} connections"
        return f"chat turns, {kind}, {connections}, {users}"


def figures(stage: Stage, sizes: Sizes) -> Iterator[Figure]:
    """Yield all rows of a stage."""
    with servers.model(pause_seconds=0) as model:
        settings = {"LLM_BASE_URL": model, **_MODEL}
        with (
            servers.started(stage.url, **settings) as ours,
            servers.started(stage.url, "-m", "benchmarks.constant_turns", **settings) as floor,
        ):
            ours.wait_until_ready()
            floor.wait_until_ready()
            rows = _Rows(stage, sizes)
            for load_ in (Load(8, 8), Load(8, 8, stream=True)):
                yield from rows.compare(load_, ours, floor, load_, _CONSTANT, _UNITS)
            for load_ in (Load(1, 1), Load(32, 32)):
                yield from rows.compare(load_, ours, floor, load_, _CONSTANT, ("turns per second", "p99"))
            one, many = Load(32, 1), Load(32, 32)
            yield from rows.compare(one, ours, ours, many, "of 32 users", ("turns per second", "p99"))
        yield _memory(stage, sizes, settings)


class _Rows:
    def __init__(self, stage: Stage, sizes: Sizes) -> None:
        self._stage = stage
        self._sizes = sizes
        self._tokens = [databases.token(user) for user in stage.users.writers]

    def compare(
        self, load_: Load, ours: Server, floor: Server, floor_load: Load, floor_is: str, names: Iterable[str]
    ) -> Iterator[Figure]:
        """Yield a row for each name; samples of both alternate."""
        samples, floor_samples = by_turns(
            self._sizes.repeats, self._sampler(ours, load_), self._sampler(floor, floor_load)
        )
        for name in names:
            yield Figure(
                what=f"{load_}: {name}",
                database=self._stage.kind,
                unit=_UNITS[name],
                ours=[sample[name] for sample in samples],
                floor_is=floor_is,
                floor=[sample[name] for sample in floor_samples],
                target=_target(name, load_, self._stage),
            )

    def _sampler(self, server: Server, load_: Load) -> Callable[[], dict[str, float]]:
        requests = turns(self._tokens[: load_.users], self._sizes.turns, stream=load_.stream)
        process = server.process.pid

        def sample() -> dict[str, float]:
            before = processor_seconds(process)
            *took, whole = load.run(server.address, requests, load_.connections)
            used = processor_seconds(process) - before
            took.sort()
            slowest = took[len(took) * 99 // 100]
            values = len(took) / whole, used / len(took) * 1000, took[len(took) // 2] * 1000, slowest * 1000
            return dict(zip(_UNITS, values, strict=True))

        return sample


def turns(tokens: Sequence[str], many: int, *, stream: bool) -> Sequence[bytes]:
    """Return the requests of turns in new conversations, the users in rotation."""
    body = json.dumps({"message": "Hello there", "stream": stream}).encode()
    return [load.request("POST", "/chat", tokens[number % len(tokens)], body) for number in range(many)]


def processor_seconds(process: int) -> float:
    """Return the processor time of all threads.

    psutil's `cpu_times` count in steps of 10 ms.
    """
    threads = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def _target(name: str, load_: Load, stage: Stage) -> Target | None:
    if name == "turns per second" and load_.users == 1 and load_.connections > 1 and not stage.is_sqlite:
        return Target(">=", 0.8)
    return None


def _memory(stage: Stage, sizes: Sizes, settings: dict[str, str]) -> Figure:
    megabytes = []
    for _ in range(sizes.starts):
        with servers.started(stage.url, **settings) as server:
            address = server.wait_until_ready()
            tokens = [databases.token(user) for user in stage.users.writers]
            load.run(address, turns(tokens, min(MEMORY_TURNS, sizes.turns * 10), stream=True), 8)
            megabytes.append(psutil.Process(server.process.pid).memory_info().rss / 2**20)
    return Figure(
        what=f"memory of one worker after {MEMORY_TURNS:,} chat turns",
        database=stage.kind,
        unit="MiB",
        ours=megabytes,
        target=Target("<=", 110, "MiB"),
    )
