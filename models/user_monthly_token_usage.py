"""The monthly rollup of the ledger."""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, BigIntegerKey, Tokens


class UserMonthlyTokenUsage(Base):
    """The sums of one user's counted messages of one month.

    Checks of the database hold the figures at 0 or above and `total_tokens` at input + output. Written by
    `services.token_usage` (adds) and `services.backfill` (sets right) alone.
    """

    __tablename__ = "user_monthly_token_usage"

    id: Mapped[BigIntegerKey]
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    year: Mapped[int]
    month: Mapped[int]
    input_tokens: Mapped[Tokens]
    output_tokens: Mapped[Tokens]
    total_tokens: Mapped[Tokens]
    total_cost: Mapped[Decimal]
    message_count: Mapped[Tokens]
    last_updated: Mapped[datetime | None]
    created_at: Mapped[datetime | None]

    __table_args__ = (
        UniqueConstraint("user_id", "year", "month", name="unique_user_month"),
        Index("ix_user_monthly_token_usage_month", "year", "month"),
    )
