"""Map the refresh tokens."""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class RefreshToken(Base):
    """Store the hash of a refresh token, and its access token.

    A used token stays until it expires, to detect a second use. All tokens of one login share `session_id`.
    """

    __tablename__ = "refresh_tokens"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    token_hash: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str]
    token_version: Mapped[int]
    access_jti: Mapped[str]
    access_expires_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
