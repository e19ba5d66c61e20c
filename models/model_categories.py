"""Map the model categories of users."""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import AnyInteger, AnyString, AnyText, Base, BigIntegerKey


class ModelCategory(Base):
    """Store a user's name for a model.

    The earlier backend had the same table. Its deleted categories are inactive rows.
    """

    __tablename__ = "user_model_categories"

    id: Mapped[BigIntegerKey]
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    category_name: Mapped[str] = mapped_column(AnyString)
    display_name: Mapped[str] = mapped_column(AnyString)
    model_id: Mapped[str] = mapped_column(AnyString)
    description: Mapped[str | None] = mapped_column(AnyText)
    sort_order: Mapped[int | None] = mapped_column(AnyInteger)
    is_active: Mapped[bool | None]
    created_at: Mapped[datetime | None]
    updated_at: Mapped[datetime | None]
