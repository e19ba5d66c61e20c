"""Comparing: both sides of each month as pairs, the differences between them, and the report of all."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, column, select, table, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app import money
from app.clock import Month
from services.adoption import Reason
from services.deficits import Deficit, KeyRange
from services.rollups import FIGURES, SUMMED, Sums, UserMonth


class Difference(NamedTuple):
    """A field of a month that is not what the messages say; None stands for a month that is not there.

    Of a month that is right itself, also the fields of its days and of their conversations, named by these.
    """

    user_id: int
    month: Month
    field: str
    expected: Any
    found: Any


@dataclass
class Report:
    """What was found in the messages, and what was done, or would be done, to the months of the rollup."""

    users: int = 0
    months: int = 0
    messages: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_cost: Decimal = money.ZERO
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: Counter[Reason] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    left: dict[UserMonth, str] = field(default_factory=dict)
    """Months that were left as they are, each with its reason."""
    last_user: int | None = None

    def count(self, pairs: "Pairs") -> None:
        """Takes in the months of a range; ranges come by user."""
        users = {user_id for (user_id, _), pair in pairs.items() if pair.expected.message_count}
        self.users += len(users - {self.last_user})
        self.last_user = max(users, default=self.last_user)
        for pair in pairs.values():
            self.months += pair.expected.message_count > 0
            self.messages += pair.expected.message_count
            self.input_tokens += pair.expected.input_tokens
            self.output_tokens += pair.expected.output_tokens
            self.total_cost += pair.expected.total_cost
            if pair.is_even:
                self.unchanged += 1
            elif not pair.is_too_costly:
                self.created += pair.found is None
                self.updated += pair.found is not None
        too_costly = "it would cost more than can be counted"
        self.left |= {key: too_costly for key, pair in pairs.items() if pair.is_too_costly}


@dataclass
class Pair:
    """Both sides of one (user, month): the sum of its messages, and its rollup, if there is one."""

    expected: Sums = field(default_factory=Sums)
    found: Sums | None = None
    found_total_tokens: int | None = None  # where an old rollup contradicts itself

    @property
    def is_even(self) -> bool:
        """Whether the rollup is right; an empty row for a month without messages is not."""
        if self.found is None:
            return self.expected == Sums()
        return self.expected == self.found != Sums() and self.found_total_tokens is None

    @property
    def is_missing(self) -> bool:
        """Whether a row has to be made."""
        return self.found is None and not self.is_even

    @property
    def is_wrong(self) -> bool:
        """Whether a row has to be changed or to go."""
        return self.found is not None and not self.is_even

    @property
    def is_too_costly(self) -> bool:
        """Whether no row could hold the sum."""
        return self.expected.total_cost > money.MAX_MONTHLY_COST

    @property
    def deficit(self) -> Sums:
        """By how much the rollup falls short."""
        return self.expected - (self.found or Sums())

    def figure_found(self, name: str) -> int | Decimal | None:
        """A figure of the rollup as it is."""
        if name == "total_tokens" and self.found_total_tokens is not None:
            return self.found_total_tokens
        found: int | Decimal | None = getattr(self.found, name, None)
        return found


Pairs = dict[UserMonth, Pair]


def pairs_of(found: Iterable[Deficit]) -> Pairs:
    """The months among what was read.

    Raises:
        ValueError: a figure is not a number: SQLite stores texts, PostgreSQL NaN.
    """
    return {(row.user_id, row.month_of()): _pair(row) for row in found if row.level == "month"}


_SHOULD, _FOUND = (attrgetter(*(f"{side}_{name}" for name in SUMMED)) for side in ("should", "found"))


def _pair(row: Deficit) -> Pair:
    expected, there = Sums(*_SHOULD(row)), Sums(*_FOUND(row))
    for sums in (expected, there):
        tokens_and_count = (sums.input_tokens, sums.output_tokens, sums.message_count)
        if not all(isinstance(figure, int) for figure in tokens_and_count) or not sums.total_cost.is_finite():
            raise ValueError("a figure is not a number")
    return Pair(expected, there if row.is_found else None)


def differences(pairs: Pairs, found: Iterable[Deficit]) -> Iterator[Difference]:
    """What is not right, by user and month."""
    for key in sorted(pairs):
        pair = pairs[key]
        if not pair.is_even:
            should = pair.expected if pair.expected != Sums() else None
            all_fields = (
                Difference(*key, name, getattr(should, name, None), pair.figure_found(name)) for name in FIGURES
            )
            yield from (item for item in all_fields if item.expected != item.found)
    for row in found:
        key = (row.user_id, row.month_of())
        if row.level != "month" and (key not in pairs or pairs[key].is_even):
            yield from _differences_below(row)


def _differences_below(row: Deficit) -> Iterator[Difference]:
    place = f"{row.usage_date} conversation {row.conversation_id}" if row.conversation_id else f"{row.usage_date}"
    for name in (*SUMMED, "conversation_count", "last_message_at"):
        should = getattr(row, f"should_{name}") if row.should_message_count else None
        found = getattr(row, f"found_{name}") if row.is_found else None
        if should != found:
            yield Difference(row.user_id, row.month_of(), f"{place} {name}", should, found)


async def old_rollup(session: AsyncSession, key_range: KeyRange) -> Pairs:
    """The rollup of an old database as it is: nulls, floats, and totals that may contradict their parts."""
    old = table("user_monthly_token_usage", *(column(name) for name in ("user_id", "year", "month", *FIGURES)))
    wanted: list[ColumnElement[bool]] = [
        old.c.user_id.between(key_range.first_user, key_range.last_user),
        old.c.user_id.in_(select(column("id")).select_from(table("users"))),  # the others go with the upgrade
    ]
    if key_range.since:
        wanted.append(tuple_(old.c.year, old.c.month) >= tuple_(*key_range.since))
    if key_range.until:
        wanted.append(tuple_(old.c.year, old.c.month) <= tuple_(*key_range.until))
    pairs: Pairs = {}
    for row in await session.execute(select(old).where(*wanted)):
        if row.year not in range(1, 10_000) or row.month not in range(1, 13):
            continue
        found = Sums(
            _whole(row.input_tokens), _whole(row.output_tokens), _cost(row.total_cost), _whole(row.message_count)
        )
        total = _whole(row.total_tokens)
        pair = Pair(found=found, found_total_tokens=total if total != found.total_tokens else None)
        pairs[row.user_id, Month(row.year, row.month)] = pair
    return pairs


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _cost(value: Any) -> Decimal:
    try:
        return money.from_float(float(value))
    except (TypeError, ValueError):
        return money.ZERO
