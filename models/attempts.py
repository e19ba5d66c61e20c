"""Map the counters of rate limits."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class Attempt(Base):
    """Count the attempts within a window.

    `key` is a hash, so that the table does not reveal users and addresses.
    """

    __tablename__ = "attempts"

    key: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int]
    expires_at: Mapped[datetime] = mapped_column(index=True)
