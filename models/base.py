"""The declarative base and the types that several tables share."""

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
"""SQLite numbers rows by itself only where the column's type is exactly INTEGER."""

Tokens = Annotated[int, mapped_column(BigInteger)]


class AnyString(TypeDecorator[str]):
    """Text; bytes and numbers, which other tools may have stored on SQLite, are read as text as well."""

    impl = String
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        if value is None or isinstance(value, str):
            return value
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class AnyText(AnyString):
    """The same, as TEXT."""

    impl = Text
    cache_ok = True


class AnyUsdAmount(UsdAmount):
    """Dollars; None where an old row holds something that is no amount."""

    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        try:
            amount = super().process_result_value(value, dialect)
        except (ArithmeticError, TypeError, ValueError):
            return None
        return amount if amount is not None and amount.is_finite() else None


class Base(DeclarativeBase):
    """Columns are 64 bits for tokens, `UsdAmount` for money and `UtcDateTime` for instants."""

    type_annotation_map: ClassVar = {datetime: UtcDateTime, Decimal: UsdAmount}


class UsageFigures:
    """The figures that every table of usage sums has: tokens, dollars, and how many messages they come from.

    `unpriced_count` counts the messages whose price is unknown, `estimated_count` those whose tokens were estimated.
    """

    input_tokens: Mapped[Tokens]
    output_tokens: Mapped[Tokens]
    total_cost: Mapped[Decimal]
    message_count: Mapped[Tokens]
    unpriced_count: Mapped[Tokens]
    estimated_count: Mapped[Tokens]
