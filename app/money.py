"""Handle money: US dollars, decimal and exact to 1e-10."""

from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any

from sqlalchemy import BigInteger, Numeric
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

DECIMAL_PLACES = 10
QUANTUM = Decimal(1).scaleb(-DECIMAL_PLACES)
ZERO = Decimal(0)
MAX_MONTHLY_COST = Decimal(900_000_000)
"""Dollars of one user and month: below 2**63 units of 1e-10, above which SQLite would compute with floats."""
MAX_MESSAGE_COST = Decimal(1_000_000)
"""Dollars of one message. A higher cost is refused, so that no sum exceeds its column."""


def to_usd(value: Decimal) -> Decimal:
    """Round half to even at 1e-10 dollars.

    Raises:
        decimal.InvalidOperation: the amount is not finite, or has more than 18 digits before the point.
    """
    if not value.is_finite():  # quantize would hand a NaN back
        raise InvalidOperation(f"{value} is not an amount of money")
    return value.quantize(QUANTUM, rounding=ROUND_HALF_EVEN)


def from_float(value: float) -> Decimal:
    """Round a float's exact value half to even at 1e-10 dollars.

    Raises:
        ValueError: the float is not finite, or too large.
    """
    if not abs(value) < 1e15:  # also catches NaN
        raise ValueError(f"{value!r} is not an amount of money")
    return to_usd(Decimal(value))


def as_text(amount: Decimal) -> str:
    """Format an amount without exponent and trailing zeros: `0.45`, `0`."""
    return f"{amount.normalize():f}" if amount else "0"


def of_units(units: int) -> Decimal:
    """Convert units of 1e-10 dollars, as SQLite stores them, to dollars."""
    return Decimal(units).scaleb(-DECIMAL_PLACES)


class UsdAmount(TypeDecorator[Decimal]):
    """Store dollars as `Decimal`.

    PostgreSQL: `NUMERIC(20, 10)`. SQLite: an integer of 1e-10 dollars, so that sums are exact.

    Raises:
        TypeError: the bound value is not a Decimal, for example a float.
        ValueError: the amount is finer than 1e-10 dollars, and would have to be rounded.
    """

    impl = Numeric(20, DECIMAL_PLACES)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return BigInteger() if dialect.name == "sqlite" else Numeric(20, DECIMAL_PLACES)

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if not isinstance(value, Decimal):
            raise TypeError(f"an amount of money is a Decimal, not {type(value).__name__}")
        if value != to_usd(value):
            raise ValueError(f"{value} is finer than {QUANTUM}")
        return int(value.scaleb(DECIMAL_PLACES)) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        if value is None:
            return None
        return of_units(value) if dialect.name == "sqlite" else Decimal(value)
