"""Map the messages, the ledger of all usage."""

from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, ForeignKey, Index, Text, and_, literal_column, or_, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import AnyString, AnyText, Base, BigIntegerKey, Tokens

LOWEST_ID = -(2**63)
"""The lowest id that a row can have."""

MAX_TOKENS = 2**31 - 1
"""The most input or output tokens of one message. More is refused; in old data the row is skipped as absurd."""


class Message(Base):
    """Store one message; a row with a `usage_date` is counted forever.

    `usage_date` is the day of `created_at` in `USAGE_TIMEZONE`. It is null in messages without usage, and in old rows
    that are not adopted. The constraint `ck_messages_counted` checks tokens and cost of every counted row. `user_id`
    is null only in old rows without an owner. `turn` names the turn, and so the process, of a pending answer.
    `request_hash` identifies the request of an idempotency key. `finish_reason` is one of
    `services.chat.finish_reasons`, or the service's own word. `usage_details` contains further counts of the same
    tokens, and the service tier, as JSON. `image_urls` and `document_context` contain JSON; an earlier backend wrote
    them, and the columns of branches. The `model` of a question is the one that its request named.
    """

    __tablename__ = "messages"

    id: Mapped[BigIntegerKey]
    conversation_id: Mapped[str | None] = mapped_column(ForeignKey("conversations.id"), index=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    role: Mapped[str] = mapped_column(AnyString)
    content: Mapped[str | None] = mapped_column(AnyText)
    created_at: Mapped[datetime | None]
    status: Mapped[str | None] = mapped_column(AnyString)
    model: Mapped[str | None] = mapped_column(AnyString)
    input_tokens: Mapped[Tokens | None]
    output_tokens: Mapped[Tokens | None]
    cached_input_tokens: Mapped[Tokens | None]
    cost: Mapped[Decimal | None]
    price_source: Mapped[str | None]
    usage_estimated: Mapped[bool | None]
    idempotency_key: Mapped[str | None]
    request_hash: Mapped[str | None]
    turn: Mapped[str | None]
    usage_date: Mapped[date | None]
    finish_reason: Mapped[str | None] = mapped_column(AnyString)
    usage_details: Mapped[str | None] = mapped_column(Text)
    parent_message_id: Mapped[int | None] = mapped_column(BigInteger)
    branch_id: Mapped[str | None] = mapped_column(AnyString)
    is_active_branch: Mapped[bool | None]
    image_urls: Mapped[str | None] = mapped_column(AnyText)
    document_context: Mapped[str | None] = mapped_column(AnyText)

    __table_args__ = (
        Index(
            "ix_messages_pending",
            "turn",
            postgresql_where=text("status = 'pending'"),
            sqlite_where=text("status = 'pending'"),
        ),
        Index(
            "ix_messages_user_id_usage_date_conversation_id",
            "user_id",
            "usage_date",
            "conversation_id",
            postgresql_where=text("user_id IS NOT NULL"),
            sqlite_where=text("user_id IS NOT NULL"),
        ),
        Index(
            "uq_messages_idempotency_key",
            "user_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
            sqlite_where=text("idempotency_key IS NOT NULL"),
        ),
    )


def is_not_adopted(columns: Any) -> ColumnElement[bool]:
    """Match old rows without an owner, or with usage but no day."""
    # The same text as in the index's condition: otherwise SQLite does not use the index.
    carries = and_(columns.role == literal_column("'assistant'"), columns.input_tokens.is_not(None))
    return or_(columns.user_id.is_(None), and_(columns.usage_date.is_(None), carries))


_NOT_ADOPTED = is_not_adopted(Message)
Index("ix_messages_not_adopted", Message.id, postgresql_where=_NOT_ADOPTED, sqlite_where=_NOT_ADOPTED)
