"""The rollup of the ledger by day and conversation: a day by its conversations."""

from datetime import date, datetime
from decimal import Decimal

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Tokens


class ConversationDailyTokenUsage(Base):
    """The sums of one user's counted messages of one day and one conversation; its id is empty where there is none.

    Written together with the month, by the same two services.
    """

    __tablename__ = "conversation_daily_token_usage"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    usage_date: Mapped[date] = mapped_column(primary_key=True)
    conversation_id: Mapped[str] = mapped_column(primary_key=True)
    input_tokens: Mapped[Tokens]
    output_tokens: Mapped[Tokens]
    total_cost: Mapped[Decimal]
    message_count: Mapped[Tokens]
    last_message_at: Mapped[datetime | None]
