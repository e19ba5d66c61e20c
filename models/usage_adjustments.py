"""Map the usage that counts without messages."""

from datetime import date, datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, UsageFigures

ARCHIVED = "archived"
"""The reason of adjustments that stand for archived messages."""


class UsageAdjustment(UsageFigures, Base):
    """Store usage without messages; the rollups sum it like messages.

    `reason` is `carried_over` for usage that an earlier backend counted before it deleted the messages, and
    `archived` for that of messages that the script moved to a file.
    """

    __tablename__ = "usage_adjustments"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    usage_date: Mapped[date] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
