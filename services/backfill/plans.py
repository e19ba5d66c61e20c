"""Decide what to do about a month that differs from the ledger."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC
from typing import NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import extract, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.clock import Month
from models import Message
from services.backfill import old_rows
from services.backfill.deficits import MonthPair
from services.backfill.old_rows import OldRows
from services.usage import full_runs
from services.usage.rollups import Sums, UserMonth

_UTC = ZoneInfo("UTC")
# The UTC date of an instant differs from its date in another time zone by at most one day.
_DAYS_AT_THE_EDGES = (1, 28, 29, 30, 31)


@dataclass
class Explained:
    """Hold why an earlier backend's months exceed the ledger without deleted messages.

    The earlier backend dated months in UTC; the ledger may use another time zone.
    """

    moved: dict[UserMonth, Sums] = field(default_factory=dict)
    """The sums of the old rows of the UTC month, minus those of the month in the time zone."""
    uncountable: dict[UserMonth, list[Sums]] = field(default_factory=dict)
    """What the earlier backend counted in the UTC month for each row that breaks a rule; the ledger omits them."""

    def move(self, before: UserMonth, after: UserMonth, sums: Sums) -> None:
        """Move a row from its UTC month to its time-zone month."""
        if before != after:
            self.moved.setdefault(before, Sums()).add(sums)
            self.moved[after] = self.moved.get(after, Sums()) - sums


@dataclass(frozen=True)
class Policy:
    """Decide how to treat months with more messages than the ledger."""

    carry_over: bool = False
    """Whether months may still hold usage whose messages an earlier backend deleted after counting."""
    accept_missing: bool = False
    """Whether months follow the ledger when messages are gone from it."""
    explained: Explained = field(default_factory=Explained)


async def refined(session: AsyncSession, policy: Policy, old: OldRows) -> Policy:
    """Return the policy, completed with the state of an earlier backend's months."""
    if not policy.carry_over or (old.is_adopted and not await full_runs.has_old_months(session)):
        return replace(policy, carry_over=False)
    explained = Explained()
    async for row in old_rows.read(session, old):
        by_utc, by_zone = old_rows.examine(row, _UTC), old_rows.examine(row, old.zone)
        if by_utc.usage is not None and by_utc.month is not None and by_zone.month is not None:
            explained.move(by_utc.month, by_zone.month, by_utc.usage.sums())
        elif by_utc.reason is not None and by_utc.month is not None:
            explained.uncountable.setdefault(by_utc.month, []).append(old_rows.counted_before(row))
    if old.is_adopted and old.zone != _UTC:
        await _explain_adopted(session, old, explained)
    return replace(policy, explained=explained)


async def _explain_adopted(session: AsyncSession, old: OldRows, explained: Explained) -> None:
    columns = (Message.user_id, Message.created_at, Message.usage_date)
    figures = (Message.input_tokens, Message.output_tokens, Message.cost)
    at_the_edges = (Message.status.is_(None), extract("day", Message.usage_date).in_(_DAYS_AT_THE_EDGES))
    statement = select(*columns, *figures).where(Message.usage_date.is_not(None), *at_the_edges)
    if old.users is not None:
        statement = statement.where(Message.user_id.in_(old.users))
    async for row in await session.stream(statement.execution_options(yield_per=old_rows.BATCH_ROWS)):
        before = Month.of(clock.usage_date(row.created_at, UTC))
        sums = Sums.of_message(row.input_tokens, row.output_tokens, row.cost)
        explained.move((row.user_id, before), (row.user_id, Month.of(row.usage_date)), sums)


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
    if policy.carry_over and found != pair.in_days:  # else an earlier run has corrected the month already
        excess -= policy.explained.moved.get(key, Sums())
        lost = _deleted(found, excess, policy.explained.uncountable.get(key, []))
        if lost.message_count > 0:
            carried = lost.positive()
            return Plan(pair.expected + carried, carried)
    return Plan(pair.expected)


def _deleted(found: Sums, excess: Sums, uncountable: Sequence[Sums]) -> Sums:
    """Subtract uncountable rows, so that they can be repaired and counted later.

    A month that cannot hold a row's tokens is outdated: only the number of rows is subtracted. A figure of 0 says
    nothing, since the upgrade may have set it.
    """
    names = [name for name in ("input_tokens", "output_tokens") if getattr(found, name)]
    for row in uncountable:
        fits = all(getattr(row, name) <= max(getattr(excess, name), 0) for name in names)
        excess -= row if fits else Sums(message_count=row.message_count)
    return excess
