"""Verification: what the rollups should be beside what they are, from one snapshot, also of an old database.

It says what `backfill.run` would do, and writes nothing.
"""

import functools
from collections import deque
from collections.abc import AsyncIterator, Sequence
from datetime import tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy.ext.asyncio import AsyncSession

from app import snapshots
from app.clock import Month
from app.database import Database
from services import adoption, comparisons, deficits, in_order, key_ranges, piecewise, rollups, usage_zone
from services.adoption import Shape
from services.comparisons import Pair, Pairs, Report
from services.deficits import LAST_DAY, Deficit, KeyRange
from services.key_ranges import Scope, Size
from services.progress import Listener, Progress, to_count
from services.reconciliation import MOST_READ, READERS
from services.rollups import Sums, UserMonth


async def compare(database: Database, scope: Scope, batch_size: int, zone: ZoneInfo, listener: Listener) -> Report:
    """Says what a run would do, and lists every difference. Writes nothing, also to a database of an old schema.

    Raises:
        ConfigurationError: the messages were dated by another zone.
    """
    async with snapshots.open_same(database, READERS) as readers:  # a row may be adopted meanwhile, and is seen once
        session = readers[0]
        shape = await adoption.shape_of(session)
        if not shape.has_messages:
            return Report()
        if shape.is_adopted:
            await usage_zone.refuse_another(session, zone)
        size = Size(batch_size, MOST_READ, by_messages=shape.is_adopted)
        total = await to_count(database, scope) if shape.is_adopted else 0
        report = Report()
        old = await _old_sums(session, shape, scope, zone, report, listener)
        ranges = key_ranges.cover(database, scope, size)
        await _compare(readers, shape, ranges, old, total, report, listener)
        return report


async def _compare(
    readers: Sequence[AsyncSession],
    shape: Shape,
    ranges: AsyncIterator[KeyRange],
    sums_of_old: dict[UserMonth, Sums],
    counted: int,
    report: Report,
    listener: Listener,
) -> None:
    total = counted + sum(group.message_count for group in sums_of_old.values())
    old = deque(sorted(sums_of_old.items()))

    async def read(session: AsyncSession, key_range: KeyRange) -> list[_Read]:
        return await piecewise.work_on(key_range, functools.partial(_read, session, shape), report.left.__setitem__)

    def take(key_range: KeyRange, parts: list[_Read]) -> None:
        pairs: Pairs = {key: pair for part in parts for key, pair in part.pairs.items()}
        below = [row for part in parts for row in part.below]
        while old and old[0][0] <= (key_range.last_user, key_range.until or Month.of(LAST_DAY)):
            key, sums = old.popleft()
            pairs.setdefault(key, Pair()).expected += sums
        report.count(pairs)
        report.differences += comparisons.differences(pairs, below)
        listener(Progress("comparing", report.messages, max(report.messages, total)))

    await in_order.work_through(ranges, readers, read, take)


class _Read(NamedTuple):
    pairs: Pairs
    below: list[Deficit]


async def _read(session: AsyncSession, shape: Shape, key_range: KeyRange) -> _Read:
    async with session.begin_nested():  # what its data breaks is read again in parts
        if shape.is_adopted:
            found = await deficits.read(session, key_range)
            return _Read(comparisons.pairs_of(found), [row for row in found if row.level != "month"])
        return _Read(await comparisons.old_rollup(session, key_range) if shape.has_rollup else {}, [])


async def _old_sums(
    session: AsyncSession, shape: Shape, scope: Scope, zone: tzinfo, report: Report, listener: Listener
) -> dict[UserMonth, Sums]:
    total = await adoption.count(session, shape, scope.users)
    sums: dict[UserMonth, Sums] = {}
    done = 0
    async for finding in adoption.findings(session, shape, scope.users, zone):
        done += 1
        if finding.reason is not None:
            report.skipped[finding.reason] += 1
        if finding.usage is not None and finding.user_id is not None:
            usage, month = finding.usage, Month.of(finding.usage.usage_date)
            if scope.includes(month):
                group = sums.setdefault((finding.user_id, month), Sums())
                group += rollups.of_one(usage.input_tokens, usage.output_tokens, usage.cost, None)
        if done % adoption.BATCH_ROWS == 0 or done == total:
            listener(Progress("reading", done, max(done, total)))
    return sums
