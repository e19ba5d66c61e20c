"""The declarative base and the types that several tables share."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, ClassVar

from sqlalchemy import BigInteger, Integer
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.clock import UtcDateTime
from app.money import UsdAmount

BigIntegerKey = Annotated[int, mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)]
"""SQLite numbers rows by itself only where the column's type is exactly INTEGER."""

Tokens = Annotated[int, mapped_column(BigInteger)]


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
