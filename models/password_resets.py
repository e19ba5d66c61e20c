"""Tokens with which a forgotten password is reset."""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class PasswordReset(Base):
    """The one token, by its hash, with which a user may set a new password; its use deletes the row."""

    __tablename__ = "password_resets"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    token_hash: Mapped[str]
    expires_at: Mapped[datetime]
