"""Prepare the stages: a filled database, the product's server, and the floor."""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import uvloop

from app.db import migrations
from app.db.database import Database
from benchmarks import databases, servers
from benchmarks.databases import Users

T = TypeVar("T")

USUAL_MESSAGES = 10_000


@dataclass(frozen=True)
class Stage:
    """Hold an open database, its users, and the servers' addresses."""

    kind: str
    url: str
    database: Database
    users: Users
    usual: int
    many: int
    """`usual` and `many` are the numbers of messages of the users with these names this month."""
    loop: asyncio.Runner
    ours: str
    floor: str
    model: str
    """The address of the model's service that `ours` calls."""

    @property
    def is_sqlite(self) -> bool:
        """Return whether the database is SQLite."""
        return self.kind == "SQLite"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in this process to its end."""
        return self.loop.run(work)


@contextlib.contextmanager
def opened(kind: str, url: str, many: int) -> Iterator[Stage]:
    """Open a stage on an empty database, as a context."""
    with contextlib.ExitStack() as stack:
        loop = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        loop.run(migrations.upgrade(url))
        database = Database.open(url)
        stack.callback(lambda: loop.run(database.close()))
        usual = min(USUAL_MESSAGES, many // 2)
        users = loop.run(databases.fill(database, usual, many))
        model = stack.enter_context(servers.model())
        ours = servers.started(url, LLM_BASE_URL=model, LLM_API_KEY="none", LLM_MODEL="gpt-4o-mini")
        floor = servers.started(url, "-m", "benchmarks.floor")
        for server in (ours, floor):
            stack.enter_context(server)
        addresses = ours.wait_until_ready(), floor.wait_until_ready()
        yield Stage(kind, url, database, users, usual, many, loop, *addresses, model)
