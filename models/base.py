"""Define the declarative base, and the types that tables share."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar

from sqlalchemy import BigInteger, Integer, String, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from app.clock import UtcDateTime
from app.money import UsdAmount

BigIntegerKey = Annotated[int, mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)]
"""A primary key that the database assigns; SQLite does so only for the type INTEGER."""

Tokens = Annotated[int, mapped_column(BigInteger)]


class AnyString(TypeDecorator[str]):
    """Read bytes and numbers, which other tools store on SQLite, as text."""

    impl = String
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        if value is None or isinstance(value, str):
            return value
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class AnyText(AnyString):
    """Read any value of a TEXT column as text."""

    impl = Text
    cache_ok = True


class AnyInteger(TypeDecorator[int]):
    """Read None from an old row without an integer."""

    impl = Integer
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        return value if isinstance(value, int) else None


class AnyUsdAmount(UsdAmount):
    """Store dollars; read None from an old row without a valid amount."""

    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        try:
            amount = super().process_result_value(value, dialect)
        except (ArithmeticError, TypeError, ValueError):
            return None
        return amount if amount is not None and amount.is_finite() else None


class Base(DeclarativeBase):
    """Map tokens to 64 bits, money to `UsdAmount`, and instants to `UtcDateTime`."""

    type_annotation_map: ClassVar = {datetime: UtcDateTime, Decimal: UsdAmount}


class UsageFigures:
    """Define the figures of every table of usage sums.

    `unpriced_count` counts the messages without a known price, `estimated_count` those with estimated tokens.
    """

    input_tokens: Mapped[Tokens]
    output_tokens: Mapped[Tokens]
    total_cost: Mapped[Decimal]
    message_count: Mapped[Tokens]
    unpriced_count: Mapped[Tokens]
    estimated_count: Mapped[Tokens]
