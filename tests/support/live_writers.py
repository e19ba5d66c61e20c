"""Those who write beside a run: servers, backends that report usage, and a process of the earlier version."""

import asyncio
import contextlib
import operator
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.database import Database
from services.usage import records, token_usage
from services.usage.pricing import PriceList
from services.usage.records import UsageRecord
from services.usage.token_usage import Entry, Usage
from tests.support import commands, invariants
from tests.support.invariants import Totals, UserMonth
from tests.support.old_databases import USERS, OldDatabase

OWNERS = USERS[:3]
MONTHS = [datetime(2024, month, 28, tzinfo=UTC) for month in (2, 3, 4)]
_COST = Decimal("0.0000000003")
_WRITTEN_BY_AN_OLD_PROCESS = text("""
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows)
    INSERT INTO messages (conversation_id, role, content, created_at, input_tokens, output_tokens)
    SELECT (SELECT min(id) FROM conversations WHERE user_id = :owner), 'assistant', 'old', '2024-02-15 00:00:00+00:00',
        7, 3
    FROM n
""")


@dataclass
class Writers:
    """Who writes all the time, what was acknowledged, and what that amounts to."""

    database: Database
    hold_seconds: float
    """So long a transaction stays open after its message is counted."""
    months: dict[UserMonth, Totals] = field(default_factory=dict)
    records: list[tuple[int, str]] = field(default_factory=list)
    """Users and idempotency keys of records, as the ledger has them."""
    acknowledged: Counter[str] = field(default_factory=Counter)
    stopped: bool = False

    async def store_messages(self, random: Random) -> None:
        """As a server does."""
        while not self.stopped:
            entry = Entry(
                user_id=random.choice(OWNERS),
                role="assistant",
                created_at=random.choice(MONTHS),
                usage=Usage(input_tokens=random.randrange(9), output_tokens=random.randrange(9), cost=_COST),
            )

            async def work(session: AsyncSession, entry: Entry = entry) -> None:
                await token_usage.record(session, entry, UTC)
                await asyncio.sleep(self.hold_seconds)

            await self.database.transaction(work)
            assert entry.usage is not None
            self._count("messages", entry.user_id, entry.created_at, [entry.usage])
            await asyncio.sleep(random.uniform(0, 0.02))

    async def report_usage(self, random: Random) -> None:
        """As other backends do, a few records at once."""
        while not self.stopped:
            owner, at = random.choice(OWNERS), random.choice(MONTHS)
            batch = [
                UsageRecord(
                    id=str(uuid.uuid4()),
                    user_id=owner,
                    model="a model without a price",
                    input_tokens=random.randrange(9),
                    output_tokens=random.randrange(9),
                    cost=_COST,
                    created_at=at,
                )
                for _ in range(random.randint(1, 3))
            ]

            async def work(session: AsyncSession, batch: Sequence[UsageRecord] = batch) -> None:
                await records.record(session, batch, PriceList(), UTC)
                await asyncio.sleep(self.hold_seconds)

            await self.database.transaction(work, repeatable=True)
            self.records += [item.key for item in batch]
            self._count("records", owner, at, batch)
            await asyncio.sleep(random.uniform(0, 0.02))

    async def write_as_an_old_process(self, rows: int) -> None:
        """Messages that say neither whose they are nor on which day they count; and no count."""
        for owner in OWNERS[:2]:
            values = {"owner": owner, "rows": rows}

            async def work(session: AsyncSession, values: Mapping[str, int] = values) -> None:
                await session.execute(_WRITTEN_BY_AN_OLD_PROCESS, values)

            await self.database.transaction(work)
            self._count("old rows", owner, MONTHS[0], [Usage(input_tokens=7, output_tokens=3)] * rows)

    async def be_an_old_process(self, random: Random) -> None:
        """As one that nobody has stopped."""
        while not self.stopped:
            await self.write_as_an_old_process(rows=2)
            await asyncio.sleep(random.uniform(0.02, 0.1))

    def _count(self, kind: str, owner: int, at: datetime, stored: Sequence[Usage | UsageRecord]) -> None:
        self.acknowledged[kind] += len(stored)
        key = owner, f"{at:%Y-%m}"
        for item in stored:
            tokens = (item.input_tokens, item.output_tokens, item.input_tokens + item.output_tokens)
            self.months[key] = plus(self.months.get(key, Totals()), Totals(*tokens, Fraction(item.cost or 0), 1))


def plus(one: Totals, other: Totals) -> Totals:
    """The sum of two."""
    return Totals(*map(operator.add, one, other))


def together(old: OldDatabase, writers: Writers) -> dict[UserMonth, Totals]:
    """What an old database and all that was written to it amount to."""
    found = dict(writers.months)
    for key, month in old.months().items():
        tokens = (month.input_tokens, month.output_tokens, month.input_tokens + month.output_tokens)
        found[key] = plus(found.get(key, Totals()), Totals(*tokens, Fraction(month.cost), month.messages))
    return found


@contextlib.asynccontextmanager
async def writing(
    database: Database, *, servers: int = 3, reporters: int = 2, old_processes: int = 1, hold_seconds: float = 0.0
) -> AsyncIterator[Writers]:
    """Writers of a few months, all at once, on connections of their own; at the end each finishes its transaction."""
    writers = Writers(database, hold_seconds)
    async with asyncio.TaskGroup() as group:
        for i in range(servers):
            group.create_task(writers.store_messages(Random(i)))
        for i in range(reporters):
            group.create_task(writers.report_usage(Random(f"reporter {i}")))
        for i in range(old_processes):
            group.create_task(writers.be_an_old_process(Random(f"{i}")))
        try:
            yield writers
        finally:
            writers.stopped = True


async def execute(database: Database, *statements: str) -> None:
    async def work(session: AsyncSession) -> None:
        for statement in statements:
            await session.execute(text(statement))

    await database.transaction(work)


async def read(database: Database, statement: str) -> list[Any]:
    async with database.reads() as session:
        return list(await session.execute(text(statement)))


async def ids(database: Database, statement: str) -> set[int]:
    return {row.id for row in await read(database, statement)}


async def check(database: Database) -> Mapping[UserMonth, Totals]:
    """Demands that the rollups equal the ledger; how much must be in it, the test knows."""
    return await invariants.check(database, skipped=await ids(database, NOT_COUNTED))


async def check_all(old: OldDatabase, writers: Writers) -> None:
    """Demands that also the ledger is what was there before and what was acknowledged, and that the script says so."""
    assert await check(writers.database) == together(old, writers)
    stored = Counter((row.user_id, row.idempotency_key) for row in await read(writers.database, RECORDS))
    assert stored == Counter(writers.records), "acknowledged and stored are not the same"
    assert (await asyncio.to_thread(commands.migrate, old.url, "--verify", "--quiet")).code == 0


NOT_COUNTED = "SELECT id FROM messages WHERE role = 'assistant' AND input_tokens IS NOT NULL AND usage_date IS NULL"
RECORDS = "SELECT user_id, idempotency_key FROM messages WHERE idempotency_key IS NOT NULL"
