"""Map the users."""

from datetime import datetime

from sqlalchemy import Index, false, func, or_
from sqlalchemy.orm import Mapped, mapped_column

from models.base import AnyString, Base


class User(Base):
    """Store a user.

    In old rows a null `role` means `user`, and a null `is_active` means active. Every access token contains
    `token_version` (null: 0); raising it invalidates all earlier tokens. `username_key` is unique among new accounts
    and ignores case; old rows have none.
    """

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(AnyString, unique=True)
    email: Mapped[str] = mapped_column(AnyString, unique=True)
    hashed_password: Mapped[str]
    role: Mapped[str | None]
    is_active: Mapped[bool | None]
    created_at: Mapped[datetime | None]
    token_version: Mapped[int | None]
    username_key: Mapped[str | None]

    __table_args__ = (Index("uq_users_username_key", "username_key", unique=True),)


ROLE = func.coalesce(User.role, "user").label("role")
"""The role in SQL, with the meaning of null."""

IS_ACTIVE = or_(User.is_active.is_(None), User.is_active != false()).label("is_active")
"""Whether the account is active in SQL, with the meaning of null."""

TOKEN_VERSION = func.coalesce(User.token_version, 0).label("token_version")
"""The version of accepted tokens in SQL, with the meaning of null."""
