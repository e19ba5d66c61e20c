"""Map the idempotency keys of archived messages."""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import AnyString, Base, Tokens


class ArchivedKey(Base):
    """Keep an idempotency key, and what a repeated request is compared with.

    The columns are those of the archived message.
    """

    __tablename__ = "archived_keys"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    idempotency_key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[str | None]
    role: Mapped[str | None] = mapped_column(AnyString)
    model: Mapped[str | None] = mapped_column(AnyString)
    input_tokens: Mapped[Tokens | None]
    output_tokens: Mapped[Tokens | None]
    cached_input_tokens: Mapped[Tokens | None]
    cost: Mapped[Decimal | None]
    created_at: Mapped[datetime | None]
