"""How much is measured: about three minutes, the large sizes, or the least that runs every row."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Repeats of each row, seconds of each sample, messages of the user who has many, and counts of requests."""

    repeats: int
    seconds: float
    many: int
    stored: int
    """Messages a sample."""
    requests: int
    """Requests of 1,000 records a sample."""
    records: int = 1000
    starts: int = 3
    unread: int = 60
    """Streams that nobody reads."""


USUAL = Sizes(repeats=15, seconds=0.2, many=200_000, stored=200, requests=2)
FULL = Sizes(repeats=31, seconds=0.4, many=1_000_000, stored=300, requests=5, starts=5)
SMOKE = Sizes(repeats=1, seconds=0.01, many=50, stored=2, requests=1, records=5, starts=1, unread=2)
