"""Keep Prometheus metrics, for monitoring only; exact usage is in the database.

A single process keeps its metrics in memory. Several workers keep them in files of a shared directory, so that each
worker reports all of them. Usage is recorded after its commit, never within a transaction.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, Protocol

import psutil
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client import generate_latest as _generate
from prometheus_client import multiprocess as _multiprocess
from sqlalchemy import Pool, QueuePool, event

disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = CONTENT_TYPE_LATEST
_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
if _DIRECTORY in os.environ:  # a cleaner of the temporary directory may have removed it before this worker started
    try:
        os.makedirs(os.environ[_DIRECTORY], mode=0o700, exist_ok=True)
        TemporaryFile(dir=os.environ[_DIRECTORY]).close()
    except OSError as error:
        print(f"{_DIRECTORY}: {os.environ[_DIRECTORY]!r} cannot be used: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

_requests = Counter("foundation_http_requests", "Requests answered.", ["method", "route", "status"])
_request_seconds = Histogram(
    "foundation_http_request_seconds",
    "Seconds from the request to the end of its response, streams included.",
    ["method", "route"],
    buckets=_SECONDS,
)
_messages = Counter("foundation_messages_counted", "Messages with usage that were stored and counted.")
_tokens = Counter("foundation_tokens_counted", "Tokens of counted messages; cached_input is part of input.", ["kind"])
_cost = Counter("foundation_cost_usd", "Dollars of counted messages with a known price.")
_unpriced = Counter("foundation_messages_unpriced", "Messages counted without a known price.")
_estimated = Counter(
    "foundation_messages_estimated", "Messages whose tokens were estimated, since no usage was reported."
)
_retries = Counter("foundation_retries", "Retries of transactions or of requests to the model.", ["of"])
_turns = Counter("foundation_turns_settled", "Answers of models by their final status.", ["status"])
_failures = Counter("foundation_settlement_failures", "Answers that had to be settled in a simpler way; see the log.")
_pending = Gauge("foundation_messages_pending", "Pending answers of all processes.", multiprocess_mode="mostrecent")
_in_use = Gauge(
    "foundation_database_connections_in_use", "Connections of the pool in use.", multiprocess_mode="livesum"
)
_limit = Gauge(
    "foundation_database_connections_limit", "Connections that the pool may open.", multiprocess_mode="livesum"
)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Used(Protocol):
    """Describe the usage of a message."""

    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def cached_input_tokens(self) -> int: ...
    @property
    def cost(self) -> Decimal | None: ...
    @property
    def usage_estimated(self) -> bool: ...


def answered(method: str, route: str, status: int, seconds: float) -> None:
    """Record a request, with the template of its route as label."""
    count, duration = _of_route(method if method in _METHODS else "other", route, status)
    count.inc()
    duration.observe(seconds)


@functools.lru_cache(maxsize=1000)
def _of_route(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    return _requests.labels(method, route, str(status)), _request_seconds.labels(method, route)


def counted(usages: Iterable[_Used]) -> None:
    """Record counted messages, after the commit of their transaction."""
    used = list(usages)
    _messages.inc(len(used))
    _tokens.labels("input").inc(sum(usage.input_tokens for usage in used))
    _tokens.labels("output").inc(sum(usage.output_tokens for usage in used))
    _tokens.labels("cached_input").inc(sum(usage.cached_input_tokens for usage in used))
    _cost.inc(float(sum(usage.cost or 0 for usage in used)))
    _unpriced.inc(sum(usage.cost is None for usage in used))
    _estimated.inc(sum(usage.usage_estimated for usage in used))


def settled(status: str) -> None:
    """Record the final status of an answer."""
    _turns.labels(status).inc()


def settlement_failed() -> None:
    """Record that an answer had to be settled in a simpler way."""
    _failures.inc()


def tried_again(what: str) -> None:
    """Record a retry of a `transaction` or of the `model`."""
    _retries.labels(what).inc()


def watch_pool(pool: Pool) -> None:
    """Report the connections in use of this pool from now on."""
    if not isinstance(pool, QueuePool):
        return
    _limit.set(pool.size() + pool._max_overflow)

    def taken(*_: Any) -> None:
        _in_use.set(pool.checkedout())

    def returned(*_: Any) -> None:  # the pool calls this just before it counts the connection as returned
        _in_use.set(pool.checkedout() - 1)

    event.listen(pool, "checkout", taken)
    event.listen(pool, "checkin", returned)


@contextmanager
def shared_by_workers() -> Iterator[None]:
    """Let processes that start within this context share their metrics."""
    with TemporaryDirectory(prefix="foundation-be-metrics-") as directory:
        os.environ[_DIRECTORY] = directory
        try:
            yield
        finally:
            del os.environ[_DIRECTORY]


def keep_files_fresh() -> None:
    """Touch the shared files, which a cleaner of temporary directories would remove."""
    if directory := os.environ.get(_DIRECTORY):
        for path in (Path(directory), *Path(directory).glob("*.db")):
            with contextlib.suppress(OSError):
                os.utime(path)


def bury_dead_workers() -> None:
    """Drop the gauges of workers that have exited."""
    if directory := os.environ.get(_DIRECTORY):
        for path in Path(directory).glob("gauge_live*_*.db"):
            pid = int(path.stem.rpartition("_")[2])
            if not psutil.pid_exists(pid):
                _multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


def exposition(pending: int | None) -> bytes:
    """Return all metrics as text; `pending` is None if unknown."""
    _pending.set(float("nan") if pending is None else pending)
    return _generate(_registry())


def totals() -> dict[str, dict[str, int]]:
    """Return the counts since the server started, of all workers.

    For each counter with at most one label: the count of each value of the label, which is empty without a label.
    """
    found: dict[str, dict[str, int]] = {}
    for family in _registry().collect():
        for sample in family.samples:
            if family.type == "counter" and len(sample.labels) < 2:
                found.setdefault(family.name, {})[next(iter(sample.labels.values()), "")] = int(sample.value)
    return found


def _registry() -> CollectorRegistry:
    if _DIRECTORY not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    _multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry
