"""Reconciliation: every range of the rollups is set beside its messages, and is given what it lacks.

A live transaction adds the same amount to the ledger and to the rollups. So a deficit, the sum of some messages less
their rollup, is the same in every snapshot, whatever live traffic does. It is read from one snapshot (`deficits`), for
which nobody has to wait, and then added, the way live usage is added; unless another run has added to a rollup
meanwhile: then it is read anew where no other run can.
"""

import asyncio
import functools
from contextlib import AsyncExitStack
from typing import NamedTuple

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app import database_failures
from app.database import Database
from app.errors import TransactionConflict
from services import comparisons, deficits, exclusive, in_order, key_ranges, piecewise, rollup_corrections, rollups
from services.comparisons import Pairs, Report
from services.deficits import KeyRange
from services.exclusive import Mark
from services.key_ranges import Scope, Size
from services.pace import Pace
from services.progress import Listener, Progress, to_count

READERS, MOST_READ = 2, 60_000
"""So many connections look at ranges at once, of so many messages each."""
ROWS, LEAST_ROWS, MOST_ROWS = 20_000, 500, 50_000
"""Messages of a range where much has to be added: at first, at least and at most."""
SECONDS = 0.1
"""So long others may have to wait for what is added to a range."""


async def reconcile(database: Database, scope: Scope, batch_size: int, report: Report, listener: Listener) -> None:
    """Sets the rollups of the scope right, a range of users and months after the other."""
    mark, only_one = Mark(), asyncio.Lock()
    await exclusive.transaction(database, mark.take)
    total = await to_count(database, scope)
    async with Pace.on(database, ROWS, LEAST_ROWS, MOST_ROWS, SECONDS) as pace, AsyncExitStack() as stack:
        size = Size(batch_size, pace.rows)
        expect_even = True  # where one range was: nothing of the next is kept, which is quicker

        async def set_parts_right(connection: AsyncConnection, key_range: KeyRange) -> list[Pairs]:
            return await piecewise.work_on(key_range, functools.partial(set_right, connection), report.left.__setitem__)

        async def set_right(connection: AsyncConnection, key_range: KeyRange) -> Pairs:
            nonlocal expect_even
            pairs = await database.read(functools.partial(_if_even, key_range=key_range)) if expect_even else None
            if pairs is None:
                read = await database.read(functools.partial(_read, mark=mark, key_range=key_range), on=connection)
                pairs = read.pairs if read.is_even else None
            expect_even = pairs is not None
            if pairs is None:
                async with only_one:
                    pairs = await _add(database, connection, mark, key_range, read, pace)
            size.messages = MOST_READ if expect_even else pace.rows
            return pairs

        def take(_key_range: KeyRange, parts: list[Pairs]) -> None:
            for pairs in parts:
                report.count(pairs)
            listener(Progress("counting", report.messages, max(report.messages, total)))

        # What is read lies in a temporary table of the connection that adds it.
        connections = [await stack.enter_async_context(database.engine.connect()) for _ in range(READERS)]
        await in_order.work_through(key_ranges.cover(database, scope, size), connections, set_parts_right, take)


async def _if_even(session: AsyncSession, key_range: KeyRange) -> Pairs | None:
    """The months of a range, if all of it is as it should be."""
    try:
        found = await deficits.read(session, key_range)
        pairs = comparisons.pairs_of(found)
    except Exception as error:
        if database_failures.is_of_data(error):
            return None
        raise
    return pairs if len(pairs) == len(found) and all(pair.is_even for pair in pairs.values()) else None


class _Read(NamedTuple):
    """What was read of a range, and which mark was found before that."""

    mark: str | None
    pairs: Pairs
    below: int

    @property
    def is_even(self) -> bool:
        return not self.below and all(pair.is_even for pair in self.pairs.values())


async def _read(session: AsyncSession, mark: Mark, key_range: KeyRange) -> _Read:
    found = await mark.find(session)
    months, below = await deficits.collect(session, key_range)
    return _Read(found, comparisons.pairs_of(months), below)


async def _add(
    database: Database, connection: AsyncConnection, mark: Mark, key_range: KeyRange, read: _Read, pace: Pace
) -> Pairs:
    usable: _Read | None = read

    async def work(session: AsyncSession) -> Pairs:
        nonlocal usable
        added, usable = usable, None  # a second attempt does not know what became of the first
        if not await mark.take(session, added.mark if added else None) or added is None:
            added = await _read(session, mark, key_range)
        try:
            await deficits.apply(session)
            await _apply_to_months(session, {key: pair for key, pair in added.pairs.items() if not pair.is_too_costly})
        except IntegrityError as error:
            if "foreign key" in str(error.orig).lower():
                raise TransactionConflict("a user was deleted at this moment") from None
            raise
        return added.pairs

    await pace.breathe()
    return await exclusive.transaction(database, work, pace, on=connection)


async def _apply_to_months(session: AsyncSession, pairs: Pairs) -> None:
    """Adds the deficits: to months that are missing as live usage is added, to the others whatever the sign."""
    await rollups.add_months(session, {key: pair.expected for key, pair in pairs.items() if pair.is_missing})
    await rollup_corrections.adjust_months(session, {key: pair.deficit for key, pair in pairs.items() if pair.is_wrong})
