"""Usage that counts although the ledger holds no message for it."""

from datetime import date, datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, UsageFigures


class UsageAdjustment(UsageFigures, Base):
    """Usage without messages. The rollups are the sums of the messages and of these rows.

    `reason` is `carried_over` for what an earlier backend had counted and whose messages it had deleted.
    """

    __tablename__ = "usage_adjustments"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    usage_date: Mapped[date] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
