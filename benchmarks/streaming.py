"""Measure the delay that the backend adds to a streamed chat turn."""

import json
import re
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from benchmarks import databases, load, upstream
from benchmarks.figures import Figure, Target, by_turns
from benchmarks.sizes import Sizes
from benchmarks.stages import Stage

TURNS = 5
_LAST_CHUNK = b"0\r\n"
_SENT_AT = re.compile(rb'"content":\s*"(\d{6,}) ')


class Delays(NamedTuple):
    """Hold delays in milliseconds.

    `first` is the time from the request to the first piece. `each` is the time from the sending of a later piece to its
    arrival.
    """

    first: float
    each: float


def figures(stage: Stage, sizes: Sizes) -> Iterator[Figure]:
    """Yield all rows of a stage."""
    token = databases.token(stage.users.writers[0])
    through = load.request("POST", "/chat", token, json.dumps({"message": "Hello there"}).encode())
    prompt = {"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": "Hello there"}]}
    direct = load.request("POST", "/v1/chat/completions", "none", json.dumps(prompt).encode())
    for what, field, target in (
        ("streamed chat: asking to the first delta", "first", Target("<=", 10)),
        ("streamed chat: each further delta", "each", None),
    ):
        added, alone = by_turns(
            sizes.repeats, _delay(stage.ours, through, sizes, field), _delay(stage.model, direct, sizes, field)
        )
        yield Figure(
            what=what,
            database=stage.kind,
            unit="ms",
            ours=added,
            floor_is="the upstream called directly",
            floor=alone,
            target=target,
            by_difference=True,
        )


def _delay(address: str, request: bytes, sizes: Sizes, field: str) -> Callable[[], float]:
    """Measure a delay over a persistent connection.

    The backend's connection to the model is persistent too. The first turn opens the connections and is not measured.
    """
    turns = min(TURNS, sizes.stored)

    def measure() -> float:
        with load.connect(address) as connection, connection.makefile("rb") as lines:
            delays = [_turn(connection, lines, request) for _ in range(turns + 1)]
        taken: list[float] = [getattr(delay, field) for delay in delays[1:]]
        return statistics.median(taken)

    return measure


def _turn(connection: socket.socket, lines: BinaryIO, request: bytes) -> Delays:
    arrivals: list[tuple[int, int]] = []
    asked = time.monotonic_ns()
    connection.sendall(request)
    for line in iter(lines.readline, _LAST_CHUNK):
        found = _SENT_AT.search(line)
        if found and len(arrivals) < upstream.PIECES:  # the event `done` repeats the whole content
            arrivals.append((time.monotonic_ns(), int(found[1])))
    lines.readline()
    (first, _), *further = arrivals
    return Delays((first - asked) / 1e6, statistics.median(arrived - sent for arrived, sent in further) / 1e6)
