"""Instants at which prices are known, and what tokens cost by a price list."""

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

JUNE = datetime(2024, 6, 15, 12, tzinfo=UTC)
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def dollars(per_million: tuple[str, str, str], tokens: tuple[int, int, int]) -> Decimal:
    """Of prices and counts of input, cached input and output; the cached tokens are among the input's."""
    read, cached, written = tokens
    fresh, again, output = (Fraction(price) / 10**6 for price in per_million)
    exact = fresh * (read - cached) + again * cached + output * written
    return Decimal(round(exact * 10**10)).scaleb(-10)
