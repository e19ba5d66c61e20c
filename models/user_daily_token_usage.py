"""The daily rollup of the ledger: a month by its days, and each day by its models."""

from datetime import date

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, UsageFigures


class UserDailyTokenUsage(UsageFigures, Base):
    """The sums of one user's counted messages and adjustments of one day and one model.

    `model` is empty where the message names none. Only the services that write the monthly rollup write this table.
    """

    __tablename__ = "user_daily_token_usage"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    usage_date: Mapped[date] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
