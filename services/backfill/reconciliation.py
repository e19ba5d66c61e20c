"""Reconciliation: compare every range of the rollups with the ledger, and add what it lacks.

A range that is right is only read, which blocks no one. Another one is read again and corrected in one transaction
that no other run is in. Live traffic may go on: it adds the same figures to the ledger and to the rollups, so what a
range lacks is the same in every snapshot.
"""

import functools
from collections.abc import Mapping
from datetime import date, timedelta

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.db.database import Database, insert
from models import UsageAdjustment
from services.backfill import comparisons, deficits, in_order, key_ranges, piecewise, run_lock
from services.backfill.comparisons import Plan, Policy, Report
from services.backfill.deficits import Deficits, KeyRange
from services.backfill.key_ranges import Scope, Size
from services.backfill.progress import Listener, Progress, to_count
from services.backfill.throttle import Pace
from services.usage import corrections, rollups
from services.usage.rollups import SUMMED, Slot, Sums, UserMonth

READERS, MOST_READ = 2, 60_000
"""How many ranges are read at once, and how many messages each has at most."""
ROWS, LEAST_ROWS, MOST_ROWS = 20_000, 500, 50_000
"""Messages of a range that has to be corrected: at first, at least and at most."""
# How long a correcting transaction may hold its locks, in seconds.
SECONDS = 0.1

CARRIED_OVER = "carried_over"


async def reconcile(
    database: Database, scope: Scope, batch_size: int, policy: Policy, report: Report, listener: Listener
) -> None:
    """Repair the rollups of the scope, one range of users and months after the other."""
    total = await to_count(database, scope)
    pace = Pace.on(database, ROWS, LEAST_ROWS, MOST_ROWS, SECONDS)
    size = Size(batch_size, pace.rows)

    async def repair(key_range: KeyRange) -> Deficits:
        found = await database.read(functools.partial(deficits.read, key_range=key_range))
        if not found.are_none:
            await pace.pause()
            work = functools.partial(_correct, key_range=key_range, policy=policy)
            found = await run_lock.transaction(database, work, pace)
        size.messages = MOST_READ if found.are_none else pace.rows
        return found

    async def repair_in_parts(_worker: int, key_range: KeyRange) -> list[Deficits]:
        return await piecewise.work_on(key_range, repair, report.left.__setitem__)

    def take(_key_range: KeyRange, parts: list[Deficits]) -> None:
        for part in parts:
            report.count(part.months, policy)
        listener(Progress("counting", report.messages, max(report.messages, total)))

    await in_order.work_through(key_ranges.cover(database, scope, size), range(READERS), repair_in_parts, take)


async def _correct(session: AsyncSession, key_range: KeyRange, policy: Policy) -> Deficits:
    found = await deficits.read(session, key_range)
    plans = {key: comparisons.plan(key, pair, policy) for key, pair in found.months.items()}
    await _carry_over(session, {key: plan.carried for key, plan in plans.items() if plan.carried is not None})
    await _correct_days(session, found, {key for key, plan in plans.items() if plan.left is not None})
    await _correct_months(session, found, {key: plan for key, plan in plans.items() if plan.left is None})
    return found


async def _carry_over(session: AsyncSession, carried: Mapping[UserMonth, Sums]) -> None:
    """Store what an earlier backend had counted as adjustments of the first day of its month."""
    first = date.min + timedelta(days=1)  # the day before stands for minus infinity
    slots = {Slot(user_id, max(month.first_day, first), ""): sums for (user_id, month), sums in carried.items()}
    if not slots:
        return
    now = clock.now()
    rows = [
        {**slot._asdict(), **sums.values(), "reason": CARRIED_OVER, "created_at": now} for slot, sums in slots.items()
    ]
    statement = insert(session, UsageAdjustment)
    added = {name: getattr(UsageAdjustment, name) + statement.excluded[name] for name in SUMMED}
    keys = (*Slot._fields, "reason")
    try:
        await session.execute(statement.on_conflict_do_update(index_elements=keys, set_=added), rows)
    except IntegrityError as error:
        raise rollups.as_conflict(error) from None
    await rollups.add_days(session, slots)


async def _correct_days(session: AsyncSession, found: Deficits, left: set[UserMonth]) -> None:
    wrong = {slot: pair for slot, pair in found.days.items() if slot.month not in left}
    await rollups.add_days(session, {slot: pair.expected for slot, pair in wrong.items() if pair.found is None})
    changes = {slot: pair.expected - pair.found for slot, pair in wrong.items() if pair.found is not None}
    await corrections.adjust_days(session, changes)


async def _correct_months(session: AsyncSession, found: Deficits, plans: Mapping[UserMonth, Plan]) -> None:
    """Add the deficits: to missing months as live usage is added, to the others whatever the sign."""
    pairs = {key: (pair, plans[key].target) for key, pair in found.months.items() if key in plans}
    missing = {key: target for key, (pair, target) in pairs.items() if pair.found is None and target != Sums()}
    await rollups.add_months(session, missing)
    changes = {key: target - pair.found for key, (pair, target) in pairs.items() if pair.found is not None}
    wrong = {key: change for key, change in changes.items() if change != Sums() or not pairs[key][0].in_sync}
    await corrections.adjust_months(session, wrong)
