"""Map the preferences of users."""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import AnyString, AnyText, Base, BigIntegerKey


class Preferences(Base):
    """Store what a user tells every model.

    The earlier backend had the same table.
    """

    __tablename__ = "user_preferences"

    id: Mapped[BigIntegerKey]
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), unique=True, index=True)
    nickname: Mapped[str | None] = mapped_column(AnyString)
    job: Mapped[str | None] = mapped_column(AnyString)
    chatbot_preference: Mapped[str | None] = mapped_column(AnyText)
    created_at: Mapped[datetime | None]
    updated_at: Mapped[datetime | None]
