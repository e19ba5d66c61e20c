"""Refresh tokens."""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class RefreshToken(Base):
    """A refresh token, by its hash, and the access token that was issued with it.

    Kept after its use until it expires, so that a second use is noticed. Those of one login share `session_id`.
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
