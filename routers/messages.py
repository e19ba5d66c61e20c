"""Show messages to callers."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field, WithJsonSchema

from app import money
from services.chat.conversations import StoredMessage

_ROLE = "user"
"""The role of an old row without one."""


class MessageView(BaseModel):
    """A message. Tokens and cost are null without usage.

    The cost is also null if no price is known.
    """

    id: int
    role: Annotated[str, WithJsonSchema({"type": "string", "enum": ["user", "assistant", "system", "tool"]})]
    content: str | None
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None
    total_tokens: int | None
    cost: str | None = Field(description="US dollars, as a decimal", examples=["0.0004425"])
    finish_reason: str | None = Field(
        description="How the answer ended: `stop`, `length`, `content_filter`, `refusal`, `tool_calls`, `error`,"
        " `stopped` by the caller, or the service's own word; null if the service did not report it, or was cut off",
        examples=["stop"],
    )
    status: Annotated[str, WithJsonSchema({"type": "string", "enum": ["pending", "complete", "interrupted", "failed"]})]
    created_at: datetime | None


def view(message: StoredMessage) -> MessageView:
    """Convert a stored message for callers."""
    input_tokens, output_tokens = _count(message.input_tokens), _count(message.output_tokens)
    return MessageView(
        id=message.id,
        role=message.role or _ROLE,
        content=message.content,
        model=message.model,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_input_tokens=_count(message.cached_input_tokens),
        total_tokens=None if input_tokens is None else input_tokens + (output_tokens or 0),
        cost=None if message.cost is None else money.as_text(message.cost),
        finish_reason=message.finish_reason,
        status=message.status or "complete",
        created_at=message.created_at,
    )


def _count(tokens: object) -> int | None:
    """Return a token count, or None for an old row's invalid value."""
    return tokens if isinstance(tokens, int) and tokens >= 0 else None
