"""Figures for operators, in Prometheus' format. They watch the product; the exact accounts are in the database.

Each process keeps its figures in memory from its start. Several workers keep them in files of a shared directory, so
that each worker answers for all. Usage is noted after its commit, never within a transaction.
"""

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
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
if _DIRECTORY in os.environ:  # whatever cleans the temporary directory may have removed it before this worker began
    os.makedirs(os.environ[_DIRECTORY], mode=0o700, exist_ok=True)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

_requests = Counter("foundation_http_requests", "Requests answered.", ["method", "route", "status"])
_request_seconds = Histogram(
    "foundation_http_request_seconds",
    "From the request to the end of its answer, streams included.",
    ["method", "route"],
    buckets=_SECONDS,
)
_messages = Counter("foundation_messages_counted", "Messages with usage that were stored and counted.")
_tokens = Counter("foundation_tokens_counted", "Tokens of those; cached_input is part of input.", ["kind"])
_cost = Counter("foundation_cost_usd", "Dollars of those, where a price is known.")
_unpriced = Counter("foundation_messages_unpriced", "Messages counted without a known price.")
_estimated = Counter("foundation_messages_estimated", "Messages whose tokens were estimated: no usage was reported.")
_retries = Counter("foundation_retries", "Attempts that were made again, of transactions or of the model.", ["of"])
_turns = Counter("foundation_turns_settled", "Answers of models by how they ended.", ["status"])
_failures = Counter(
    "foundation_settlement_failures", "Times that an answer could not be settled as it should; see the log."
)
_pending = Gauge(
    "foundation_messages_pending", "Answers that are awaited, of all processes.", multiprocess_mode="mostrecent"
)
_in_use = Gauge(
    "foundation_database_connections_in_use", "Connections of the pool in use.", multiprocess_mode="livesum"
)
_limit = Gauge(
    "foundation_database_connections_limit", "Connections that the pool may open.", multiprocess_mode="livesum"
)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Used(Protocol):
    """The usage of a message."""

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
    """Notes a request; the route is a template, so that there are few of them."""
    count, duration = _of_route(method if method in _METHODS else "other", route, status)
    count.inc()
    duration.observe(seconds)


@functools.lru_cache(maxsize=1000)
def _of_route(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    return _requests.labels(method, route, str(status)), _request_seconds.labels(method, route)


def counted(usages: Iterable[_Used]) -> None:
    """Notes messages that were counted: to be called once their transaction was committed."""
    used = list(usages)
    _messages.inc(len(used))
    _tokens.labels("input").inc(sum(usage.input_tokens for usage in used))
    _tokens.labels("output").inc(sum(usage.output_tokens for usage in used))
    _tokens.labels("cached_input").inc(sum(usage.cached_input_tokens for usage in used))
    _cost.inc(float(sum(usage.cost or 0 for usage in used)))
    _unpriced.inc(sum(usage.cost is None for usage in used))
    _estimated.inc(sum(usage.usage_estimated for usage in used))


def settled(status: str) -> None:
    """Notes how an answer ended."""
    _turns.labels(status).inc()


def settlement_failed() -> None:
    """Note that an answer could not be settled as it should, so that a simpler way was tried."""
    _failures.inc()


def tried_again(what: str) -> None:
    """Notes that a `transaction` or the `model` is tried again."""
    _retries.labels(what).inc()


def watch_pool(pool: Pool) -> None:
    """Shows from now on how many connections of this pool are in use."""
    if not isinstance(pool, QueuePool):
        return
    _limit.set(pool.size() + pool._max_overflow)

    def taken(*_: Any) -> None:
        _in_use.set(pool.checkedout())

    def returned(*_: Any) -> None:  # called just before it counts as returned
        _in_use.set(pool.checkedout() - 1)

    event.listen(pool, "checkout", taken)
    event.listen(pool, "checkin", returned)


@contextmanager
def shared_by_workers() -> Iterator[None]:
    """Lets processes that are started meanwhile keep their figures together."""
    with TemporaryDirectory(prefix="foundation-be-metrics-") as directory:
        os.environ[_DIRECTORY] = directory
        try:
            yield
        finally:
            del os.environ[_DIRECTORY]


def keep_files_fresh() -> None:
    """Touch the shared files: what cleans the temporary directory removes those that look unused."""
    if directory := os.environ.get(_DIRECTORY):
        for path in (Path(directory), *Path(directory).glob("*.db")):
            with contextlib.suppress(OSError):
                os.utime(path)


def bury_dead_workers() -> None:
    """Takes what processes that are gone were using at their end out of the sums."""
    if directory := os.environ.get(_DIRECTORY):
        for path in Path(directory).glob("gauge_live*_*.db"):
            pid = int(path.stem.rpartition("_")[2])
            if not psutil.pid_exists(pid):
                _multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


def exposition(pending: int | None) -> bytes:
    """All figures as text; `pending` is None where the database did not tell."""
    _pending.set(float("nan") if pending is None else pending)
    if _DIRECTORY not in os.environ:
        return _generate(REGISTRY)
    registry = CollectorRegistry()
    _multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return _generate(registry)
