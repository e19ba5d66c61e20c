"""Compare the rollups with the ledger in one snapshot; write nothing.

An old database is compared without migrating it first.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import ColumnElement, column, func, literal_column, not_, or_, select, table
from sqlalchemy.ext.asyncio import AsyncSession

from app import money
from app.clock import Month
from app.console import Listener, Progress
from app.db import revisions, snapshots
from app.db.database import Database
from services.backfill import deficits, key_ranges, old_rows, plans
from services.backfill.deficits import Deficits, KeyRange, MonthPair
from services.backfill.key_ranges import Scope, Size
from services.backfill.old_rows import OldRows
from services.backfill.plans import Policy
from services.backfill.reconciliation import MOST_READ, READERS
from services.backfill.report import OLD_FIGURES, Report, differences
from services.usage import time_zone
from services.usage.rollups import MAX_COUNT, Sums, UserMonth

logger = logging.getLogger(__name__)

_MONTHS = table(
    "user_monthly_token_usage", *(column(name) for name in ("id", "user_id", "year", "month", *OLD_FIGURES))
)
_KEY = _MONTHS.c.user_id, _MONTHS.c.year, _MONTHS.c.month


async def verify(
    database: Database, scope: Scope, batch_size: int, zone: ZoneInfo, policy: Policy, listener: Listener
) -> Report:
    """Report every difference, and what `backfill.run` would do.

    Write nothing, whatever the schema.

    Raises:
        ConfigurationError: the messages were dated in another time zone, or the schema is an older one of this backend.
    """
    report = Report()
    # One snapshot, so that a row that is adopted concurrently is counted once.
    async with snapshots.open_same(database, READERS) as readers:
        session = readers[0]
        await (await session.connection()).run_sync(revisions.refuse_outdated)
        old = await old_rows.find(session, scope.users, zone)
        if not old.columns:
            return report
        if old.is_adopted:
            await time_zone.refuse_another(session, zone)
        total = await key_ranges.messages_in(database, scope) if old.is_adopted else 0
        old_sums = await _read_old(session, old, scope, report, listener)
        total += sum(sums.message_count for sums in old_sums.values())
        policy = await plans.refined(session, policy, old)
        not_taken = deque(sorted(old_sums.items(), key=lambda item: item[0]))

        def take(key_range: KeyRange, found: Deficits) -> None:
            while not_taken and not_taken[0][0] <= (key_range.last_user, key_range.until):
                key, sums = not_taken.popleft()
                found.months.setdefault(key, MonthPair()).expected += sums
            report.count(found.months, policy)
            report.differences += differences(found, policy)
            done = report.ledger.message_count
            listener(Progress("comparing", done, max(done, total)))

        if old.is_adopted:
            ranges = key_ranges.cover(database, scope, Size(batch_size, MOST_READ))
            await key_ranges.compare(ranges, readers, _read, take, report.left.__setitem__)
        else:
            async for months in _old_rollup(session, old, scope, old_sums):
                user_id, month = max(months)
                take(KeyRange(user_id, user_id, until=month), Deficits(months, {}))
            take(KeyRange(key_ranges.lowest_id(database), key_ranges.highest_id(database)), Deficits({}, {}))
    return report


async def _read(session: AsyncSession, key_range: KeyRange) -> Deficits:
    async with session.begin_nested():  # a range whose data makes the read fail is read again in parts
        return await deficits.read(session, key_range)


async def _read_old(
    session: AsyncSession, old: OldRows, scope: Scope, report: Report, listener: Listener
) -> dict[UserMonth, Sums]:
    """Return the sums of the rows that are not adopted, by month."""
    total = await old_rows.count(session, old)
    old_sums: dict[UserMonth, Sums] = {}
    done = 0
    async for row in old_rows.read(session, old):
        finding = old_rows.examine(row, old.zone)
        done += 1
        if finding.reason is not None:
            report.skipped[finding.reason] += 1
        if finding.usage is not None and finding.month is not None and scope.includes(finding.month):
            old_sums.setdefault(finding.month, Sums()).add(finding.usage.sums())
        if done % old_rows.BATCH_ROWS == 0 or done == total:
            listener(Progress("reading", done, max(done, total)))
    return old_sums


async def _old_rollup(
    session: AsyncSession, old: OldRows, scope: Scope, old_sums: Mapping[UserMonth, Sums]
) -> AsyncIterator[dict[UserMonth, MonthPair]]:
    """Yield the months of an old database's rollup, in parts, by key.

    The rollup may hold nulls, floats, and totals that contradict their parts. What the upgrade would lose is logged: it
    removes months without a user or valid month, and sets uncountable figures to 0.
    """
    if not old.has_rollup:
        return
    statement = select(_MONTHS, _is_gone().label("is_gone"), _rounded_cost(old)).order_by(*_KEY)
    found = await session.stream(statement.execution_options(yield_per=old_rows.BATCH_ROWS))
    async for part in found.partitions():
        months: dict[UserMonth, MonthPair] = {}
        for row in part:
            # SQLite may store anything as a year.
            if row.is_gone or row.year not in range(1, 10_000) or row.month not in range(1, 13):
                _log(row, "would be removed, there is no such user or month, or a newer row of that month")
                continue
            if not _is_countable(row):
                _log(row, "has figures that cannot be counted and would become 0")
            if scope.includes(key := (row.user_id, Month(row.year, row.month))):
                months[key] = _old_month(row, old_sums.get(key, Sums()))
        if months:
            yield months


def _rounded_cost(old: OldRows) -> ColumnElement[Decimal]:
    """Round the float as the upgrade does, revision 0001."""
    if old.is_sqlite:
        return literal_column("round(total_cost * 10000000000)").label("rounded_cost")
    return literal_column("round(total_cost::text::numeric, 10)").label("rounded_cost")


def _is_gone() -> ColumnElement[bool]:
    same = _MONTHS.alias()
    newest = select(func.max(same.c.id)).group_by(same.c.user_id, same.c.year, same.c.month)
    month = _MONTHS.c
    return or_(
        month.user_id.is_(None),
        month.user_id.not_in(select(column("id")).select_from(table("users"))),
        *(month.year.is_(None), month.month.is_(None)),
        *(not_(month.month.between(1, 12)), not_(month.year.between(1, 9999))),
        month.id.not_in(newest),
    )


def _log(row: Any, what: str) -> None:
    logger.warning(
        "the usage of user %s in %s-%s %s: %s messages, %s input and %s output tokens, $%s",
        *(row.user_id, row.year, row.month, what),
        *(row.message_count, row.input_tokens, row.output_tokens, row.total_cost),
    )


def _is_countable(row: Any) -> bool:
    counts = (row.input_tokens, row.output_tokens, row.message_count)
    return all(value is None or _is_whole(value) for value in counts) and (
        row.total_cost is None or _is_cost(row.total_cost)
    )


def _old_month(row: Any, expected: Sums) -> MonthPair:
    counts = (_whole(row.input_tokens), _whole(row.output_tokens))
    # The row lacks the number of messages without a price.
    found = Sums(*counts, _cost(row), _whole(row.message_count), expected.unpriced_count)
    total = _whole(row.total_tokens)
    return MonthPair(found=found, found_total_tokens=total if total != found.total_tokens else None)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= MAX_COUNT


def _is_cost(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and 0 <= float(value) <= money.MAX_MONTHLY_COST - 1


def _whole(value: Any) -> int:
    return value if _is_whole(value) else 0


def _cost(row: Any) -> Decimal:
    if not _is_cost(row.total_cost):
        return money.ZERO
    rounded = row.rounded_cost
    return rounded if isinstance(rounded, Decimal) else money.of_units(int(rounded))
