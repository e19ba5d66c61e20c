"""Report a run or a comparison, as text or JSON."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from rich.table import Table

from app import money
from app.clock import Month
from app.console import PlainConsole
from services.backfill.deficits import Deficits, MonthPair
from services.backfill.old_rows import Reason
from services.backfill.plans import Plan, Policy, plan
from services.usage.rollups import FIGURES, SUMMED, Slot, Sums, UserMonth

MAX_SHOWN_DIFFERENCES = 100
OLD_FIGURES = FIGURES[:5]
"""The figures that clients see, and that the earlier backend's months also have."""


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

    @property
    def lowers(self) -> bool:
        """Return whether a run would lower this figure."""
        return self.found is not None and (self.expected is None or self.expected < self.found)


@dataclass
class Report:
    """Sum up the ledger, and the changes to the months.

    A comparison reports the changes that a run would make.
    """

    users: int = 0
    months: int = 0
    ledger: Sums = field(default_factory=Sums)
    changes: Counter[str] = field(default_factory=Counter)
    """The number of months created, raised, lowered, removed and unchanged."""
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
    def is_right(self) -> bool:
        """Return whether no month differs, was left, or needs carrying over."""
        return not (self.differences or self.left or self.carried_over)

    def count(self, months: Mapping[UserMonth, MonthPair], policy: Policy) -> None:
        """Add the months of a range; ranges must be in user order."""
        plans = {key: plan(key, pair, policy) for key, pair in months.items()}
        users = {user_id for (user_id, _), planned in plans.items() if planned.target.message_count}
        self.users += len(users - {self.last_user})
        self.last_user = max(users, default=self.last_user)
        for key, planned in plans.items():
            self._count_month(key, months[key], planned)

    def _count_month(self, key: UserMonth, pair: MonthPair, planned: Plan) -> None:
        self.months += planned.target.message_count > 0
        self.ledger.add(planned.target)
        if planned.carried is not None:
            self.carried_over[key] = planned.carried
        if planned.missing is not None:
            self.messages_missing[key] = planned.missing
        if planned.left is not None:
            self.left[key] = planned.left
        else:
            self.changes[_change(pair, planned.target)] += 1


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


class Mode(NamedTuple):
    """Hold the flags: `dry_run`, `verify` and `show_all`.

    The first two write nothing; `show_all` lists every difference as text.
    """

    dry_run: bool = False
    verify: bool = False
    show_all: bool = False


def as_json(report: Report, mode: Mode, seconds: float) -> dict[str, Any]:
    """Return the JSON object that `--json` prints."""
    changes = report.changes
    return {
        **_figures(report),
        "created": changes["created"],
        "updated": changes["raised"] + changes["lowered"] + changes["removed"],
        **{change: changes[change] for change in ("raised", "lowered", "removed", "unchanged")},
        "redated": report.redated or 0,
        "carried_over": _months_as_json(report.carried_over),
        "messages_missing": _months_as_json(report.messages_missing),
        "skipped": dict(sorted(report.skipped.items())),
        "differences": [
            {**item._asdict(), "month": str(item.month), "expected": _plain(item.expected), "found": _plain(item.found)}
            for item in report.differences
        ],
        "seconds": round(seconds, 3),
        "dry_run": mode.dry_run,
        "verified": mode.verify and report.is_right,
    }


def _figures(report: Report) -> dict[str, Any]:
    return {
        "users": report.users,
        "months": report.months,
        "messages": report.ledger.message_count,
        "input_tokens": report.ledger.input_tokens,
        "output_tokens": report.ledger.output_tokens,
        "total_tokens": report.ledger.total_tokens,
        "total_cost": money.as_text(report.ledger.total_cost),
    }


def _months_as_json(months: Mapping[UserMonth, Sums]) -> list[dict[str, Any]]:
    names = [name for name in OLD_FIGURES if name != "total_tokens"]
    return [
        {"user_id": user_id, "month": str(month), **{name: _plain(getattr(sums, name)) for name in names}}
        for (user_id, month), sums in sorted(months.items(), key=lambda item: item[0])
    ]


def _plain(value: int | Decimal | None) -> int | str | None:
    return money.as_text(value) if isinstance(value, Decimal) else value


def show(report: Report, mode: Mode, seconds: float) -> None:
    """Print the verdict, the differences and the figures as text.

    Raises:
        OSError: standard output is closed.
    """
    console = PlainConsole()
    if mode.verify:
        differing = {(item.user_id, item.month) for item in report.differences}
        months = len(differing | report.left.keys() | report.carried_over.keys())
        right = "Verified: every month equals its messages and adjustments"
        differ = "1 month differs" if months == 1 else f"{months} months differ"
        console.print(f"Verification failed: {differ}" if months else right)
    lowered = {(item.user_id, item.month) for item in report.differences if item.lowers}
    shown = sorted(report.differences, key=lambda item: (item.user_id, item.month) not in lowered)
    for item in shown if mode.show_all else shown[:MAX_SHOWN_DIFFERENCES]:
        expected, found = ("none" if side is None else _plain(side) for side in (item.expected, item.found))
        console.print(f"user {item.user_id}, {item.month}: {item.field} should be {expected}, is {found}")
    if not mode.show_all and len(shown) > MAX_SHOWN_DIFFERENCES:
        console.print(f"… and {len(shown) - MAX_SHOWN_DIFFERENCES} more (--all or --json lists every difference)")
    if not (report.ledger.message_count or report.messages_missing):
        console.print("No token data found")
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in _rows(report, mode, seconds):
        table.add_row(name, value)
    console.print(table)


def _rows(report: Report, mode: Mode, seconds: float) -> Iterator[tuple[str, str]]:
    would = " (would be)" if mode.dry_run or mode.verify else ""
    for name, figure in _figures(report).items():
        yield name.replace("_", " "), f"${figure}" if name == "total_cost" else f"{figure:,}"
    if report.redated is not None:
        yield "messages moved to another day", f"{report.redated:,}"
    after = " after that" if report.redated else ""
    for change in ("removed", "lowered", "raised", "created"):
        yield f"months {change}{would}{after}", f"{report.changes[change]:,}"
    yield f"months unchanged{after}", f"{report.changes['unchanged']:,}"
    if report.carried_over:
        yield f"carried over from deleted messages{would}", _described(report.carried_over)
    if report.messages_missing:
        yield "messages_missing, left as they are", _described(report.messages_missing)
    for reason, rows in sorted(report.skipped.items()):
        yield f"rows skipped: {reason.replace('_', ' ')}", f"{rows:,}"
    yield "seconds", f"{seconds:.1f}"


def _described(months: Mapping[UserMonth, Sums]) -> str:
    total = sum(months.values(), start=Sums())
    return (
        f"{total.message_count:,} messages of {len(months):,} months:"
        f" {total.total_tokens:,} tokens, ${money.as_text(total.total_cost)}"
    )
