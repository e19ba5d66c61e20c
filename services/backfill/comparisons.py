"""Compare months with the ledger: plan changes, list differences, report."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, column, func, not_, or_, select, table, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app import money
from app.clock import Month
from services.backfill import old_months
from services.backfill.adoption import Reason
from services.backfill.deficits import Deficits, KeyRange, MonthPair
from services.usage.rollups import FIGURES, MAX_COUNT, SUMMED, Slot, Sums, UserMonth

logger = logging.getLogger(__name__)

OLD_FIGURES = FIGURES[:5]
"""The figures that the earlier backend's months also have."""


class Difference(NamedTuple):
    """Describe a field of a month that differs from the ledger.

    None stands for a month that does not exist. For a correct month, `field` may name a figure of a day, prefixed with
    the day and the model.
    """

    user_id: int
    month: Month
    field: str
    expected: Any
    found: Any


@dataclass(frozen=True)
class Policy:
    """Decide how to treat months with more messages than the ledger."""

    carry_over: bool = False
    """Whether months may still hold usage whose messages an earlier backend deleted after counting."""
    accept_missing: bool = False
    """Whether months follow the ledger when messages are gone from it."""
    explained: old_months.Differences = field(default_factory=old_months.Differences)
    """Other reasons why an earlier backend's months exceed the ledger."""


class Plan(NamedTuple):
    """Describe what a run does about one month.

    The run carries over `carried` and sets the month to `target`, unless `left` holds a reason to leave the month
    unchanged.
    """

    target: Sums
    carried: Sums | None = None
    left: str | None = None
    missing: Sums | None = None
    """How far the month exceeds the ledger, if that is the reason."""


def plan(key: UserMonth, pair: MonthPair, policy: Policy) -> Plan:
    """Decide what to do about one month.

    If the month and its days agree and both hold more messages than the ledger, messages are missing from the ledger.
    """
    if pair.expected.exceed_what_can_be_counted():
        return Plan(pair.expected, left="its sums would exceed what can be counted")
    found = pair.found or Sums()
    excess = found - pair.expected
    if excess.message_count > 0 and found == pair.in_days:
        if policy.accept_missing:
            return Plan(pair.expected)
        reason = f"messages_missing: {excess.message_count} messages that were counted are gone"
        return Plan(pair.expected, left=reason, missing=excess.positive())
    if policy.carry_over:
        lost = excess - policy.explained.moved.get(key, Sums())
        lost.message_count -= policy.explained.uncountable[key]
        if lost.message_count > 0:
            carried = lost.positive()
            return Plan(pair.expected + carried, carried)
    return Plan(pair.expected)


@dataclass
class Report:
    """Sum up the ledger, and the changes to the months.

    A comparison reports the changes that a run would make. `total_cost` is in US dollars.
    """

    users: int = 0
    months: int = 0
    messages: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_cost: Decimal = money.ZERO
    created: int = 0
    raised: int = 0
    lowered: int = 0
    removed: int = 0
    unchanged: int = 0
    skipped: Counter[Reason] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    left: dict[UserMonth, str] = field(default_factory=dict)
    """Months that the run left unchanged, each with its reason."""
    carried_over: dict[UserMonth, Sums] = field(default_factory=dict)
    messages_missing: dict[UserMonth, Sums] = field(default_factory=dict)
    """How far these months exceed the ledger."""
    redated: int | None = None
    """The number of messages whose day `--redate` changed; None without `--redate`."""
    last_user: int | None = None

    @property
    def updated(self) -> int:
        """Return how many existing months were changed or removed."""
        return self.raised + self.lowered + self.removed

    def count(self, months: Mapping[UserMonth, MonthPair], policy: Policy) -> None:
        """Add the months of a range; ranges must be in user order."""
        plans = {key: plan(key, pair, policy) for key, pair in months.items()}
        users = {user_id for (user_id, _), planned in plans.items() if planned.target.message_count}
        self.users += len(users - {self.last_user})
        self.last_user = max(users, default=self.last_user)
        for key, pair in months.items():
            planned = plans[key]
            ledger = planned.target
            self.months += ledger.message_count > 0
            self.messages += ledger.message_count
            self.input_tokens += ledger.input_tokens
            self.output_tokens += ledger.output_tokens
            self.total_cost += ledger.total_cost
            if planned.carried is not None:
                self.carried_over[key] = planned.carried
            if planned.left is not None:
                self.left[key] = planned.left
                if planned.missing is not None:
                    self.messages_missing[key] = planned.missing
            else:
                change = _change(pair, planned.target)
                setattr(self, change, getattr(self, change) + 1)


def _change(pair: MonthPair, target: Sums) -> str:
    """Name the change to a month by the figures that clients see.

    Changes to other figures are not reported.
    """
    if pair.found is None:
        return "created" if target.message_count else "unchanged"
    if target == Sums():
        return "removed"
    gains = [getattr(target, name) - getattr(pair.found, name) for name in OLD_FIGURES]
    if any(gain < 0 for gain in gains):
        return "lowered"
    return "raised" if any(gains) else "unchanged"


def differences(found: Deficits, policy: Policy) -> Iterator[Difference]:
    """Yield by user and month what a run would change.

    Incorrect months that the run would leave are included.
    """
    for key in sorted(found.months):
        pair = found.months[key]
        target = plan(key, pair, policy).target
        expected = target if target != Sums() else None
        all_sides = {name: (getattr(expected, name, None), pair.figure_found(name)) for name in FIGURES}
        differing = [name for name, (should, is_) in all_sides.items() if should != is_]
        for name in [name for name in differing if name in OLD_FIGURES] or differing:
            yield Difference(*key, name, *all_sides[name])
    for slot in sorted(found.days):
        if slot.month not in found.months or found.months[slot.month].in_sync:
            yield from _differences_of_day(slot, found)


def _differences_of_day(slot: Slot, deficits: Deficits) -> Iterator[Difference]:
    pair = deficits.days[slot]
    place = f"{slot.usage_date} model {slot.model}" if slot.model else f"{slot.usage_date}"
    expected = pair.expected if pair.expected != Sums() else None
    for name in SUMMED:
        sides = getattr(expected, name, None), getattr(pair.found, name, None)
        if sides[0] != sides[1]:
            yield Difference(*slot.month, f"{place} {name}", *sides)


Months = dict[UserMonth, MonthPair]
_COLUMNS = "id", "user_id", "year", "month", *OLD_FIGURES
_OLD_MONTHS = table("user_monthly_token_usage", *(column(name) for name in _COLUMNS))


async def old_rollup(session: AsyncSession, key_range: KeyRange) -> Months:
    """Read the rollup of an old database without migrating the database.

    The rollup may hold nulls, floats, and totals that contradict their parts.
    """
    old = _OLD_MONTHS
    wanted: list[ColumnElement[bool]] = [
        old.c.user_id.between(key_range.first_user, key_range.last_user),
        old.c.user_id.in_(select(column("id")).select_from(table("users"))),  # the upgrade removes all other months
    ]
    if key_range.since:
        wanted.append(tuple_(old.c.year, old.c.month) >= tuple_(*key_range.since))
    if key_range.until:
        wanted.append(tuple_(old.c.year, old.c.month) <= tuple_(*key_range.until))
    months: Months = {}
    for row in await session.execute(select(old).where(*wanted).order_by(old.c.id)):  # the newest row of a month
        if row.year not in range(1, 10_000) or row.month not in range(1, 13):
            continue
        found = Sums(
            _whole(row.input_tokens), _whole(row.output_tokens), _cost(row.total_cost), _whole(row.message_count)
        )
        total = _whole(row.total_tokens)
        pair = MonthPair(found=found, found_total_tokens=total if total != found.total_tokens else None)
        months[row.user_id, Month(row.year, row.month)] = pair
    return months


async def name_lost_months(session: AsyncSession) -> None:
    """Log the months and figures that the upgrade loses.

    It removes months of an old database without a user or valid month, and sets uncountable figures to 0.
    """
    old, same = _OLD_MONTHS, _OLD_MONTHS.alias()
    newest = select(func.max(same.c.id)).group_by(same.c.user_id, same.c.year, same.c.month)
    gone = or_(
        old.c.user_id.is_(None),
        old.c.user_id.not_in(select(column("id")).select_from(table("users"))),
        *(old.c.year.is_(None), old.c.month.is_(None)),
        *(not_(old.c.month.between(1, 12)), not_(old.c.year.between(1, 9999))),
        old.c.id.not_in(newest),
    )
    await _log_months(session, gone, "would be removed, there is no such user or month, or a newer row of that month")
    counts = old.c.input_tokens, old.c.output_tokens, old.c.message_count
    most = int(money.MAX_MONTHLY_COST) - 1
    lost = not_(old.c.total_cost.between(0, most)), *(not_(count.between(0, MAX_COUNT)) for count in counts)
    await _log_months(session, not_(gone) & or_(*lost), "has figures that cannot be counted and would become 0")


async def _log_months(session: AsyncSession, wanted: ColumnElement[bool], what: str) -> None:
    months = select(_OLD_MONTHS).where(wanted).order_by(*(_OLD_MONTHS.c[name] for name in ("user_id", "year", "month")))
    for row in await session.execute(months):
        logger.warning(
            "the usage of user %s in %s-%s %s: %s messages, %s input and %s output tokens, $%s",
            *(row.user_id, row.year, row.month, what),
            *(row.message_count, row.input_tokens, row.output_tokens, row.total_cost),
        )


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value <= MAX_COUNT else 0


def _cost(value: Any) -> Decimal:
    try:
        cost = money.from_float(float(value))
    except (TypeError, ValueError):
        return money.ZERO
    return cost if 0 <= cost < money.MAX_MONTHLY_COST else money.ZERO
