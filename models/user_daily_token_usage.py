"""The daily rollup of the ledger: a month by its days."""

from datetime import date
from decimal import Decimal

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Tokens


class UserDailyTokenUsage(Base):
    """The sums of one user's counted messages of one day, and in how many conversations they lie.

    Written together with the month, by the same two services.
    """

    __tablename__ = "user_daily_token_usage"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    usage_date: Mapped[date] = mapped_column(primary_key=True)
    input_tokens: Mapped[Tokens]
    output_tokens: Mapped[Tokens]
    total_cost: Mapped[Decimal]
    message_count: Mapped[Tokens]
    conversation_count: Mapped[Tokens]
