"""Map the feedback on messages."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import AnyString, AnyText, Base, BigIntegerKey


class Feedback(Base):
    """Store whether a user likes a message.

    The earlier backend had the same table.
    """

    __tablename__ = "feedback"

    id: Mapped[BigIntegerKey]
    message_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("messages.id"), index=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    feedback_type: Mapped[str] = mapped_column(AnyString)
    description: Mapped[str | None] = mapped_column(AnyText)
    created_at: Mapped[datetime | None]
