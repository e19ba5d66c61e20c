"""Users."""

from datetime import datetime

from sqlalchemy import Index, false, func, or_
from sqlalchemy.orm import Mapped, mapped_column

from models.base import AnyString, Base


class User(Base):
    """Someone who can log in. Old rows may have no role (then `user`) and no `is_active` (then active).

    `token_version` (null: 0) is part of every token: raised, it makes all tokens of before worthless. `username_key` is
    what no two new accounts may share, whatever the case of their letters; old rows have none.
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
"""The role in SQL, with what a null means."""

IS_ACTIVE = or_(User.is_active.is_(None), User.is_active != false()).label("is_active")
"""Whether the account is active, in SQL, with what a null means."""

TOKEN_VERSION = func.coalesce(User.token_version, 0).label("token_version")
"""The version of the tokens that are taken, in SQL, with what a null means."""
