"""Compare the rollups with the ledger in one snapshot; write nothing.

An old database is compared without migrating it first.
"""

import functools
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from zoneinfo import ZoneInfo

from sqlalchemy.ext.asyncio import AsyncSession

from app.clock import Month
from app.console import Listener, Progress
from app.db import revisions, snapshots
from app.db.database import Database
from services.backfill import adoption, comparisons, deficits, in_order, key_ranges, old_months
from services.backfill.adoption import Shape
from services.backfill.comparisons import Policy, Report
from services.backfill.deficits import LAST_DAY, Deficits, KeyRange, MonthPair
from services.backfill.key_ranges import Scope, Size
from services.backfill.reconciliation import MOST_READ, READERS
from services.usage import full_runs, time_zone
from services.usage.rollups import Sums, UserMonth


async def verify(
    database: Database, scope: Scope, batch_size: int, zone: ZoneInfo, policy: Policy, listener: Listener
) -> Report:
    """Report every difference, and what `backfill.run` would do.

    Write nothing, whatever the schema.

    Raises:
        ConfigurationError: the messages were dated in another time zone, or the schema is an older one of this backend.
    """
    # One snapshot, so that a row that is adopted concurrently is counted once.
    async with snapshots.open_same(database, READERS) as readers:
        session = readers[0]
        await (await session.connection()).run_sync(revisions.refuse_outdated)
        shape = await adoption.shape_of(session)
        if not shape.has_messages:
            return Report()
        if shape.is_adopted:
            await time_zone.refuse_another(session, zone)
        size = Size(batch_size, MOST_READ, by_messages=shape.is_adopted)
        total = await key_ranges.messages_in(database, scope) if shape.is_adopted else 0
        report = Report()
        if shape.has_rollup and not shape.is_adopted:
            await comparisons.name_lost_months(session)
        old = await _read_old(session, shape, scope, zone, report, listener)
        if shape.is_adopted and not await full_runs.has_old_months(session):
            policy = replace(policy, carry_over=False)
        if policy.carry_over:
            policy = replace(policy, explained=await old_months.differences(session, shape, scope.users, zone))
        ranges = key_ranges.cover(database, scope, size)
        await _compare(readers, shape, ranges, old, total, policy, report, listener)
        return report


async def _compare(
    readers: Sequence[AsyncSession],
    shape: Shape,
    ranges: AsyncIterator[KeyRange],
    sums_of_old: dict[UserMonth, Sums],
    counted: int,
    policy: Policy,
    report: Report,
    listener: Listener,
) -> None:
    total = counted + sum(group.message_count for group in sums_of_old.values())
    old = deque(sorted(sums_of_old.items(), key=lambda item: item[0]))

    async def read(session: AsyncSession, key_range: KeyRange) -> list[Deficits]:
        return await key_ranges.work_on(key_range, functools.partial(_read, session, shape), report.left.__setitem__)

    def take(key_range: KeyRange, parts: list[Deficits]) -> None:
        months = {key: pair for part in parts for key, pair in part.months.items()}
        days = {slot: pair for part in parts for slot, pair in part.days.items()}
        while old and old[0][0] <= (key_range.last_user, key_range.until or Month.of(LAST_DAY)):
            key, sums = old.popleft()
            months.setdefault(key, MonthPair()).expected.add(sums)
        if not shape.is_adopted:  # months of an old database lack this figure
            for pair in months.values():
                if pair.found is not None:
                    pair.found.unpriced_count = pair.expected.unpriced_count
        report.count(months, policy)
        report.differences += comparisons.differences(Deficits(months, days), policy)
        listener(Progress("comparing", report.messages, max(report.messages, total)))

    await in_order.work_through(ranges, readers, read, take)


async def _read(session: AsyncSession, shape: Shape, key_range: KeyRange) -> Deficits:
    async with session.begin_nested():  # a range whose data makes the read fail is read again in parts
        if shape.is_adopted:
            return await deficits.read(session, key_range)
        return Deficits(await comparisons.old_rollup(session, key_range) if shape.has_rollup else {}, {})


async def _read_old(
    session: AsyncSession, shape: Shape, scope: Scope, zone: ZoneInfo, report: Report, listener: Listener
) -> dict[UserMonth, Sums]:
    """Return the sums of the rows that are not adopted, by month."""
    total = await adoption.count(session, shape, scope.users)
    old: dict[UserMonth, Sums] = {}
    done = 0
    async for row in adoption.rows(session, shape, scope.users):
        finding = adoption.examine(row, zone)
        done += 1
        if finding.reason is not None:
            report.skipped[finding.reason] += 1
        key = finding.month
        if finding.usage is not None and key is not None and scope.includes(key[1]):
            old.setdefault(key, Sums()).add(finding.usage.sums())
        if done % adoption.BATCH_ROWS == 0 or done == total:
            listener(Progress("reading", done, max(done, total)))
    return old
