"""Present the report of a run or comparison as text or JSON."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from rich.table import Table

from app import money
from app.console import PlainConsole
from services.backfill.comparisons import Difference, Report
from services.usage.rollups import Sums, UserMonth

MAX_SHOWN_DIFFERENCES = 100


class Mode(NamedTuple):
    """Hold the flags: `dry_run`, `verify` and `show_all`.

    The first two write nothing; `show_all` lists every difference as text.
    """

    dry_run: bool = False
    verify: bool = False
    show_all: bool = False


def as_json(report: Report, mode: Mode, seconds: float) -> dict[str, Any]:
    """Return the JSON object that `--json` prints."""
    return {
        "users": report.users,
        "months": report.months,
        "messages": report.messages,
        "input_tokens": report.input_tokens,
        "output_tokens": report.output_tokens,
        "total_tokens": report.input_tokens + report.output_tokens,
        "total_cost": money.as_text(report.total_cost),
        "created": report.created,
        "updated": report.updated,
        "raised": report.raised,
        "lowered": report.lowered,
        "removed": report.removed,
        "unchanged": report.unchanged,
        "redated": report.redated or 0,
        "carried_over": _months_as_json(report.carried_over),
        "messages_missing": _months_as_json(report.messages_missing),
        "skipped": dict(sorted(report.skipped.items())),
        "differences": [{**item._asdict(), **_sides(item), "month": str(item.month)} for item in report.differences],
        "seconds": round(seconds, 3),
        "dry_run": mode.dry_run,
        "verified": bool(mode.verify and is_right(report)),
    }


def is_right(report: Report) -> bool:
    """Return whether no month differs, was left, or needs carrying over."""
    return not (report.differences or report.left or report.carried_over)


def _months_as_json(months: Mapping[UserMonth, Sums]) -> list[dict[str, Any]]:
    return [
        {
            "user_id": user_id,
            "month": str(month),
            "input_tokens": sums.input_tokens,
            "output_tokens": sums.output_tokens,
            "total_cost": money.as_text(sums.total_cost),
            "message_count": sums.message_count,
        }
        for (user_id, month), sums in sorted(months.items(), key=lambda item: item[0])
    ]


def _sides(item: Difference) -> dict[str, Any]:
    return {"expected": _plain(item.expected), "found": _plain(item.found)}


def _plain(value: int | Decimal | datetime | None) -> int | str | None:
    if isinstance(value, Decimal):
        return money.as_text(value)
    return value.isoformat() if isinstance(value, datetime) else value


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
    shown = _lowered_first(report.differences)
    for item in shown if mode.show_all else shown[:MAX_SHOWN_DIFFERENCES]:
        expected, found = ("none" if value is None else value for value in _sides(item).values())
        console.print(f"user {item.user_id}, {item.month}: {item.field} should be {expected}, is {found}")
    if not mode.show_all and len(shown) > MAX_SHOWN_DIFFERENCES:
        console.print(f"… and {len(shown) - MAX_SHOWN_DIFFERENCES} more (--all or --json lists every difference)")
    if not (report.messages or report.messages_missing):
        console.print("No token data found")
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in _rows(report, mode, seconds):
        table.add_row(name, value)
    console.print(table)


def _lowered_first(differences: Sequence[Difference]) -> list[Difference]:
    """Sort the differences: months whose figures a run would lower come first."""

    def takes_away(item: Difference) -> bool:
        return item.found is not None and (item.expected is None or item.expected < item.found)

    lowered = {(item.user_id, item.month) for item in differences if takes_away(item)}
    return sorted(differences, key=lambda item: (item.user_id, item.month) not in lowered)


def _rows(report: Report, mode: Mode, seconds: float) -> Iterator[tuple[str, str]]:
    would = " (would be)" if mode.dry_run or mode.verify else ""
    yield "users", f"{report.users:,}"
    yield "months", f"{report.months:,}"
    yield "messages", f"{report.messages:,}"
    yield "input tokens", f"{report.input_tokens:,}"
    yield "output tokens", f"{report.output_tokens:,}"
    yield "total tokens", f"{report.input_tokens + report.output_tokens:,}"
    yield "total cost", f"${money.as_text(report.total_cost)}"
    if report.redated is not None:
        yield "messages moved to another day", f"{report.redated:,}"
    after = " after that" if report.redated else ""
    for change in ("removed", "lowered", "raised", "created"):
        yield f"months {change}{would}{after}", f"{getattr(report, change):,}"
    yield f"months unchanged{after}", f"{report.unchanged:,}"
    if report.carried_over:
        yield f"carried over from deleted messages{would}", _described(report.carried_over)
    if report.messages_missing:
        yield "messages_missing, left as they are", _described(report.messages_missing)
    for reason, rows in sorted(report.skipped.items()):
        yield f"rows skipped: {reason.replace('_', ' ')}", f"{rows:,}"
    yield "seconds", f"{seconds:.1f}"


def _described(months: Mapping[UserMonth, Sums]) -> str:
    total = Sums()
    for sums in months.values():
        total.add(sums)
    return (
        f"{total.message_count:,} messages of {len(months):,} months:"
        f" {total.total_tokens:,} tokens, ${money.as_text(total.total_cost)}"
    )
