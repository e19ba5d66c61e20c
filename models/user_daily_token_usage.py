"""Map the daily rollup of the ledger, by day and model."""

from datetime import date

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, UsageFigures


class UserDailyTokenUsage(UsageFigures, Base):
    """Store the sums of one user, day and model: messages and adjustments.

    `model` is empty for messages without a model. Only the services that write the monthly rollup write this table.
    """

    __tablename__ = "user_daily_token_usage"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    usage_date: Mapped[date] = mapped_column(primary_key=True, index=True)
    model: Mapped[str] = mapped_column(primary_key=True)
