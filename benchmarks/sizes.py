"""Define the sizes of a measurement.

`USUAL` takes about three minutes, `FULL` is large, and `SMOKE` is the minimum that runs every row.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Hold the sizes of a measurement.

    `repeats` counts the samples of each row, which take `seconds` each. `stored` and the following fields are counts.
    `many` is the number of messages of the user with a very large month.
    """

    repeats: int
    seconds: float
    many: int
    stored: int
    """Messages per sample."""
    requests: int
    """Requests per sample, each with `records` records."""
    turns: int
    """Chat turns per sample."""
    records: int = 1000
    starts: int = 3
    unread: int = 60
    """Streams that the client does not read."""
    searched: int = 100_000
    """Messages of the user who searches."""


USUAL = Sizes(repeats=15, seconds=0.2, many=200_000, stored=200, requests=2, turns=100)
FULL = Sizes(repeats=31, seconds=0.4, many=1_000_000, stored=300, requests=5, turns=200, starts=5)
SMOKE = Sizes(
    repeats=1, seconds=0.01, many=50, stored=2, requests=1, turns=2, records=5, starts=1, unread=2, searched=50
)
