"""The declarative base and the types that several tables share."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, ClassVar

from sqlalchemy import BigInteger, Integer
from sqlalchemy.orm import DeclarativeBase, mapped_column

from app.clock import UtcDateTime
from app.money import UsdAmount

BigIntegerKey = Annotated[int, mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)]
"""SQLite numbers rows by itself only where the column's type is exactly INTEGER."""

Tokens = Annotated[int, mapped_column(BigInteger)]


class Base(DeclarativeBase):
    """Columns are 64 bits for tokens, `UsdAmount` for money and `UtcDateTime` for instants."""

    type_annotation_map: ClassVar = {datetime: UtcDateTime, Decimal: UsdAmount}
