"""Map the monthly rollup of the ledger."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, BigIntegerKey, Tokens, UsageFigures


class UserMonthlyTokenUsage(UsageFigures, Base):
    """Store the sums of one user and month: messages and adjustments.

    Database constraints keep the figures at 0 or above, and `total_tokens` equal to input plus output. Only
    `services.usage` (adds to the table) and `services.backfill` (repairs it) write it.
    """

    __tablename__ = "user_monthly_token_usage"

    id: Mapped[BigIntegerKey]
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    year: Mapped[int]
    month: Mapped[int]
    total_tokens: Mapped[Tokens]
    last_updated: Mapped[datetime | None]
    created_at: Mapped[datetime | None]

    __table_args__ = (
        UniqueConstraint("user_id", "year", "month", name="unique_user_month"),
        Index("ix_user_monthly_token_usage_month", "year", "month"),
    )
