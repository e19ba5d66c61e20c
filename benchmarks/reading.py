"""Measure reads: `GET /auth/me`, and the breakdowns."""

import itertools
import statistics
from collections.abc import Iterator, Sequence

from app import clock
from benchmarks import databases, load
from benchmarks.figures import Figure, Measure, Target, by_turns
from benchmarks.sizes import Sizes
from benchmarks.stages import Stage

CONNECTIONS = 8


def figures(stage: Stage, sizes: Sizes) -> Iterator[Figure]:
    """Yield all rows of a stage."""
    request = _me(stage.users.year)
    faster = by_turns(sizes.repeats, _rate(stage.ours, request, sizes), _rate(stage.floor, request, sizes))
    yield Figure(
        what=f"GET /auth/me, 12 months, {CONNECTIONS} connections",
        database=stage.kind,
        unit="requests/s",
        ours=faster[0],
        floor_is="database replaced by constants",
        floor=faster[1],
        target=Target(">=", 0.5),
    )
    sooner = by_turns(sizes.repeats, p50(stage.ours, request, sizes), p50(stage.floor, request, sizes))
    yield Figure(
        what="GET /auth/me, 12 months, p50 of 1 connection",
        database=stage.kind,
        unit="ms",
        ours=sooner[0],
        floor_is="database replaced by constants",
        floor=sooner[1],
        target=Target("<=", 2),
    )
    users = stage.users
    sized = by_turns(sizes.repeats, p50(stage.ours, _me(users.many), sizes), p50(stage.ours, _me(users.few), sizes))
    yield Figure(
        what=f"GET /auth/me of a user with {stage.many:,} messages, p50",
        database=stage.kind,
        unit="ms",
        ours=sized[0],
        floor_is="a user with 10",
        floor=sized[1],
        target=Target("<=", 1.1),
    )
    yield from _breakdowns(stage, sizes)


def _breakdowns(stage: Stage, sizes: Sizes) -> Iterator[Figure]:
    now, users = clock.now(), stage.users
    month, day = f"monthly/{now.year}/{now.month}/daily", f"daily/{now:%Y-%m}-01/conversations"
    rows = (
        (f"the days of a month of {stage.usual:,} messages, p50", month, users.usual, Target("<=", 5)),
        (f"the days of a month of {stage.many:,} messages, p50", month, users.many, Target("<=", 250, "ms")),
        (f"the conversations of a day of {stage.many // 28:,} messages, p50", day, users.many, Target("<=", 50, "ms")),
    )
    for what, path, user, target in rows:
        request = get(f"/auth/token-stats/{path}", user)
        health = get("/health", stage.users.many)
        ours, floor = by_turns(sizes.repeats, p50(stage.ours, request, sizes), p50(stage.ours, health, sizes))
        yield Figure(
            what=what,
            database=stage.kind,
            unit="ms",
            ours=ours,
            floor_is="GET /health",
            floor=floor,
            target=target,
        )
    page = [get(path, users.many) for path in _PAGE]
    ours, floor = by_turns(sizes.repeats, p50(stage.ours, page, sizes), p50(stage.ours, [health] * len(page), sizes))
    yield Figure(
        what=f"the usage page of a user with {stage.many:,} messages: its requests, one after another",
        database=stage.kind,
        unit="ms",
        ours=ours,
        floor_is="as many of GET /health",
        floor=floor,
        target=Target("<=", 300, "ms"),
    )


_PAGE = (
    "/app",
    "/auth/me?include_token_stats=false",
    "/auth/token-stats/models",
    "/auth/token-stats/daily?fill=true",
    "/auth/me?limit=36",
)
"""What the page asks for when it is opened."""


def get(path: str, user_id: int) -> bytes:
    """Return a request of a user."""
    return load.request("GET", path, databases.token(user_id))


def _me(user_id: int) -> bytes:
    return get("/auth/me", user_id)


def _rate(address: str, request: bytes, sizes: Sizes) -> Measure:
    def measure() -> float:
        *took, total = load.run(address, itertools.repeat(request), CONNECTIONS, sizes.seconds)
        return len(took) / total

    return measure


def p50(address: str, requests: bytes | Sequence[bytes], sizes: Sizes) -> Measure:
    """Measure the median time of a request in milliseconds, or their sum."""
    each = [requests] if isinstance(requests, bytes) else requests

    def measure() -> float:
        took = [load.run(address, itertools.repeat(request), 1, sizes.seconds)[:-1] for request in each]
        return sum(map(statistics.median, took)) * 1000

    return measure
