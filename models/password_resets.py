"""Map the tokens that reset forgotten passwords."""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class PasswordReset(Base):
    """Store the hash of a user's reset token until its use."""

    __tablename__ = "password_resets"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    token_hash: Mapped[str]
    expires_at: Mapped[datetime]
