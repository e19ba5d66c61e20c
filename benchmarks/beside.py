"""`python -m benchmarks.beside`: measure 16 writers during an adoption.

The script adopts an old database. Each writer stores and counts about ten messages a second, first alone, then
concurrently with the script.
"""

import argparse
import asyncio
import functools
import multiprocessing
import queue
import statistics
import time
from multiprocessing.synchronize import Event
from random import Random
from typing import Any

from app import clock
from app.db import migrations
from app.db.database import Database
from benchmarks import adoption, databases
from services.usage import token_usage

WRITERS = 16
# The maximum seconds between two writes of a writer; the mean is half of it.
PAUSE_SECONDS = 0.2
# Seconds of writing without the script.
ALONE_SECONDS = 30


def main() -> None:
    """Print a line for each kind of database."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000, help="messages of the old database (%(default)s)")
    parser.add_argument("--only", choices=["SQLite", "PostgreSQL"], help="measure only this kind of database")
    flags = parser.parse_args()
    with databases.urls() as urls:
        for kind, url in urls.items():
            if flags.only in (None, kind):
                print(f"| {kind} | {measure(adoption.own(url), flags.messages)} |", flush=True)  # noqa: T201


def measure(url: str, messages: int) -> str:
    """Return the write latencies, alone and concurrently with the script.

    Raises:
        SystemExit: a write failed, or a message was not counted.
    """
    adoption.make(url, messages)
    asyncio.run(migrations.upgrade(url))
    alone = _written_during(url, lambda: time.sleep(ALONE_SECONDS))
    beside = _written_during(url, lambda: adoption.script(url))
    verified = adoption.script(url, "--verify")
    expected = messages // 2 + len(alone) + len(beside)
    if verified["messages"] != expected:
        raise SystemExit(f"{verified['messages']} messages are counted, not {expected}")
    before, after = _slowest(alone), _slowest(beside)
    return (
        f"{len(beside):,} writes, none failed | slowest 1 %: {after * 1000:.0f} ms | alone: {before * 1000:.0f} ms |"
        f" {after / before:.1f} × | median {statistics.median(beside) * 1000:.1f} ms,"
        f" alone {statistics.median(alone) * 1000:.1f} ms; slowest of all {max(beside) * 1000:.0f} ms"
    )


def _slowest(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[-1]


def _written_during(url: str, work: Any) -> list[float]:
    """Return the seconds of each write while the work runs.

    The writers run in a separate process. They start before the work and stop after its end.
    """
    spawn = multiprocessing.get_context("spawn")
    ready, enough, answer = spawn.Event(), spawn.Event(), spawn.Queue()
    writers = spawn.Process(target=_write, args=(url, ready, enough, answer))
    writers.start()
    ready.wait(60)
    work()
    enough.set()
    try:
        seconds: list[float] = answer.get(timeout=60)
    except queue.Empty:
        raise SystemExit("a write failed") from None
    writers.join()
    return seconds


def _write(url: str, ready: Event, enough: Event, answer: Any) -> None:
    answer.put(asyncio.run(_write_until(url, ready, enough)))


async def _write_until(url: str, ready: Event, enough: Event) -> list[float]:
    database = Database.open(url)
    random = Random(1)
    took: list[float] = []

    async def write() -> None:
        while not enough.is_set():
            await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))
            entry = databases.entry(random.randint(1, adoption.USERS), clock.now())
            started = time.perf_counter()
            await database.transaction(functools.partial(token_usage.record, entry=entry, zone=databases.ZONE))
            took.append(time.perf_counter() - started)

    ready.set()
    async with asyncio.TaskGroup() as group:
        for _ in range(WRITERS):
            group.create_task(write())
    await database.close()
    return took


if __name__ == "__main__":
    main()
