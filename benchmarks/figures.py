"""Compare figures with their floor.

Samples of a figure and its floor alternate, so that other load on the machine disturbs both alike.
"""

import operator
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

Measure = Callable[[], float]
T = TypeVar("T")


class Target(NamedTuple):
    """Bound the comparison, or our figure if the target has a unit.

    `sign` is `>=` or `<=`.
    """

    sign: str
    bound: float
    unit: str = ""

    def is_met(self, value: float) -> bool:
        """Return whether the value meets the target."""
        return bool({">=": operator.ge, "<=": operator.le}[self.sign](value, self.bound))

    def __str__(self) -> str:
        return f"{'≥' if self.sign == '>=' else '≤'} {self.bound:g} {self.unit}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Hold one row: our samples and those of the floor, in pairs.

    A pair is compared by ratio or by difference.
    """

    what: str
    database: str
    unit: str
    ours: Sequence[float]
    floor_is: str = ""
    floor: Sequence[float] = ()
    target: Target | None = None
    by_difference: bool = False

    @property
    def comparisons(self) -> list[float]:
        """Return the comparison of each pair."""
        pairs = zip(self.ours, self.floor, strict=True) if self.floor else ()
        return [ours - floor if self.by_difference else ours / floor for ours, floor in pairs]

    @property
    def best(self) -> float | None:
        """Compare our best sample with the floor's best.

        Other load on the machine disturbs the best samples least.
        """
        if not self.floor:
            return None
        choose = max if self.unit.endswith("/s") else min
        ours, floor = choose(self.ours), choose(self.floor)
        return ours - floor if self.by_difference else ours / floor

    @property
    def is_met(self) -> bool | None:
        """Return whether the median meets the target; None without a target."""
        if self.target is None:
            return None
        return self.target.is_met(statistics.median(self.ours if self.target.unit else self.comparisons))

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON, including its samples."""
        return {
            "what": self.what,
            "database": self.database,
            "unit": self.unit,
            "ours": _summary(self.ours),
            "floor_is": self.floor_is or None,
            "floor": _summary(self.floor),
            "compared_by": "difference" if self.by_difference else "ratio",
            "comparison": _summary(self.comparisons),
            "best_against_best": self.best,
            "target": str(self.target) if self.target else None,
            "met": self.is_met,
        }


def _summary(samples: Sequence[float]) -> dict[str, Any] | None:
    if not samples:
        return None
    return {"median": statistics.median(samples), "low": min(samples), "high": max(samples), "samples": list(samples)}


def by_turns(repeats: int, *measures: Callable[[], T]) -> list[list[T]]:
    """Return samples of each measure, alternating between the measures.

    Every other round runs in reverse order. A first round warms up and is not counted.
    """
    samples: list[list[T]] = [[] for _ in measures]
    for measure in measures:
        measure()
    for turn in range(repeats):
        order = range(len(measures)) if turn % 2 == 0 else range(len(measures) - 1, -1, -1)
        for i in order:
            samples[i].append(measures[i]())
    return samples


HEADINGS = ("what", "database", "median", "spread", "floor", "against the floor", "spread", "best", "target", "met")


def table(figures: Sequence[Figure]) -> str:
    """Return a Markdown table; a spread is the lowest and highest sample."""
    rows = [HEADINGS, *(_cells(figure) for figure in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _cells(figure: Figure) -> tuple[str, ...]:
    comparisons = figure.comparisons
    floor = f"{figure.floor_is}: {_number(statistics.median(figure.floor))}" if figure.floor else "–"
    return (
        figure.what,
        figure.database,
        f"{_number(statistics.median(figure.ours))} {figure.unit}",
        _spread(figure.ours),
        floor,
        _compared(figure, statistics.median(comparisons)) if comparisons else "–",
        _spread(comparisons),
        _compared(figure, figure.best) if figure.best is not None else "–",
        str(figure.target) if figure.target else "reported",
        {True: "yes", False: "NO", None: "–"}[figure.is_met],
    )


def _compared(figure: Figure, value: float) -> str:
    return f"{value:+.2f} {figure.unit}" if figure.by_difference else f"{value:.2f} ×"


def _spread(samples: Sequence[float]) -> str:
    return f"{_number(min(samples))}–{_number(max(samples))}" if samples else "–"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
