"""Map the conversations."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.base import AnyString, Base


class Conversation(Base):
    """Store a user's thread of messages; `deleted_at` marks erased content.

    `category_id` is the model category of the user in which the conversation began.
    A branch names the conversation that it was copied from, and the question there that was edited.
    """

    __tablename__ = "conversations"

    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"), index=True)
    title: Mapped[str] = mapped_column(AnyString)
    model_type: Mapped[str] = mapped_column(AnyString)
    category_id: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime | None]
    updated_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    parent_conversation_id: Mapped[str | None] = mapped_column(AnyString)
    edited_message_id: Mapped[int | None] = mapped_column(BigInteger)
