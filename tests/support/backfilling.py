"""The backfill in tests: users with messages, runs, and what waits for them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import text

from app.db.database import Database
from services import backfill
from services.backfill import Policy, Report, Scope
from services.usage import token_usage
from services.usage.token_usage import Entry, Usage
from tests.support import accounts as people
from tests.support import invariants

UTC_ZONE = ZoneInfo("UTC")
MONTHS = [datetime(2024, month, 15, tzinfo=UTC) for month in (1, 2, 3, 4)]
USAGE = Usage(input_tokens=7, output_tokens=3, cost=Decimal("0.0000000003"))


def silent(_progress: object) -> None:
    """Hears no progress."""


async def run(database: Database, batch_size: int = 2, scope: Scope | None = None) -> Report:
    return await backfill.run(database, scope or Scope(), batch_size, UTC_ZONE, Policy(), silent)


async def execute(database: Database, *statements: str, **values: Any) -> None:
    async def work(session: Any) -> None:
        for statement in statements:
            await session.execute(text(statement), values)

    await database.transaction(work)


async def record(database: Database, owners: Sequence[int], months: Sequence[datetime] = MONTHS) -> None:
    """One message for each user and month, in one transaction."""
    entries = [Entry(user_id=owner, role="assistant", created_at=at, usage=USAGE) for owner in owners for at in months]
    await database.transaction(lambda session: token_usage.record_all(session, entries, UTC))


async def write_as_an_old_process(database: Database, owner: int) -> None:
    """A message that says neither whose it is nor on which day it counts; and no count."""
    await execute(
        database,
        "INSERT INTO messages (conversation_id, role, content, created_at, input_tokens, output_tokens)"
        " VALUES (:talk, 'assistant', 'old', '2024-02-15 00:00:00+00:00', 7, 3)",
        talk=f"talk {owner}",
    )


async def add_users(database: Database, count: int) -> list[int]:
    """Users with a conversation and a message in each month."""
    owners = [(await people.add(database, f"user{i}")).id for i in range(count)]
    for owner in owners:
        await execute(
            database,
            "INSERT INTO conversations (id, user_id, title, model_type) VALUES (:talk, :owner, 't', 'Standard')",
            talk=f"talk {owner}",
            owner=owner,
        )
    await record(database, owners)
    return owners


async def count(database: Database) -> int:
    """How many messages are counted, all of them exactly."""
    return sum(totals.message_count for totals in (await invariants.check(database)).values())


async def waiting(database: Database) -> int:
    """How many connections of PostgreSQL's wait for a lock."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with database.reads() as session:
        return int((await session.execute(text(waits))).scalar_one())


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
