"""Compare every range of the rollups with the ledger, and add deficits.

A correct range is only read, which blocks no other session. An incorrect range is read again and corrected in one
transaction, while no other run writes. Live traffic may continue. It adds the same figures to the ledger and to the
rollups, so a deficit is the same in every snapshot.
"""

import functools
from collections.abc import Mapping
from datetime import date, timedelta

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.console import Listener, Progress
from app.db.database import Database, insert
from models import UsageAdjustment
from services.backfill import deficits, key_ranges, plans, transactions
from services.backfill.deficits import Deficits, KeyRange
from services.backfill.key_ranges import Scope, Size
from services.backfill.plans import Plan, Policy
from services.backfill.report import Report
from services.backfill.transactions import Throttle
from services.usage import corrections, rollups
from services.usage.rollups import SUMMED, Slot, Sums, UserMonth

READERS, MOST_READ = 2, 60_000
"""The number of ranges read concurrently, and the maximum number of messages of each."""
ROWS, LEAST_ROWS, MOST_ROWS = 20_000, 500, 50_000
"""The first, minimum and maximum number of messages of a range that needs a correction."""
# Seconds that a correcting transaction may hold its locks.
SECONDS = 0.1

CARRIED_OVER = "carried_over"


async def reconcile(
    database: Database, scope: Scope, batch_size: int, policy: Policy, report: Report, listener: Listener
) -> None:
    """Repair the rollups of the scope, by ranges of users and months."""
    total = await key_ranges.messages_in(database, scope)
    throttle = Throttle.on(database, ROWS, LEAST_ROWS, MOST_ROWS, SECONDS)
    size = Size(batch_size, throttle.rows)

    async def repair(_reader: int, key_range: KeyRange) -> Deficits:
        found = await database.read(functools.partial(deficits.read, key_range=key_range))
        if not found.are_none:
            work = functools.partial(_correct, key_range=key_range, policy=policy)
            found = await transactions.run(database, work, throttle)
        size.messages = MOST_READ if found.are_none else throttle.rows
        return found

    def take(_key_range: KeyRange, found: Deficits) -> None:
        report.count(found.months, policy)
        done = report.ledger.message_count
        listener(Progress("counting", done, max(done, total)))

    ranges = key_ranges.cover(database, scope, size)
    await key_ranges.compare(ranges, range(READERS), repair, take, report.left.__setitem__)


async def _correct(session: AsyncSession, key_range: KeyRange, policy: Policy) -> Deficits:
    found = await deficits.read(session, key_range)
    planned = {key: plans.plan(key, pair, policy) for key, pair in found.months.items()}
    await _carry_over(session, {key: plan.carried for key, plan in planned.items() if plan.carried is not None})
    await _correct_days(session, found, {key for key, plan in planned.items() if plan.left is not None})
    await _correct_months(session, found, {key: plan for key, plan in planned.items() if plan.left is None})
    return found


async def _carry_over(session: AsyncSession, carried: Mapping[UserMonth, Sums]) -> None:
    """Store usage without messages as adjustments.

    An adjustment belongs to the first day of its month.
    """
    first = date.min + timedelta(days=1)  # asyncpg maps the first date to minus infinity
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


async def _correct_months(session: AsyncSession, found: Deficits, planned: Mapping[UserMonth, Plan]) -> None:
    """Add the deficits to the months.

    Missing months are added like live usage; existing months are adjusted by positive or negative deficits.
    """
    pairs = {key: (pair, planned[key].target) for key, pair in found.months.items() if key in planned}
    missing = {key: target for key, (pair, target) in pairs.items() if pair.found is None and target != Sums()}
    await rollups.add_months(session, missing)
    changes = {key: target - pair.found for key, (pair, target) in pairs.items() if pair.found is not None}
    wrong = {key: change for key, change in changes.items() if change != Sums() or not pairs[key][0].in_sync}
    await corrections.adjust_months(session, wrong)
