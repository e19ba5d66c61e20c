"""Show messages to callers."""

import json
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field, WithJsonSchema

from app import money
from services.chat.conversations import StoredMessage

UNKNOWN_ROLE = "user"
"""The role of an old row without one."""


class MessageView(BaseModel):
    """A message. Tokens and cost are null without usage.

    The cost is also null if no price is known.
    """

    id: int
    role: Annotated[str, WithJsonSchema({"type": "string", "enum": ["user", "assistant", "system", "tool"]})]
    content: str | None
    model: str | None = Field(description="The model that answered; null for a question")
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


class ConversationMessage(MessageView):
    """A message of a conversation, with the earlier backend's keys too."""

    model_cost: float | None = Field(description="US dollars; `cost` is the exact amount")
    image_urls: list[str] | None
    document_context: dict[str, Any] | None = Field(description="Written by an earlier backend")
    chart_data: Any = Field(description="Of `document_context`")
    parent_message_id: int | None
    branch_id: str | None
    is_active_branch: bool
    has_branches: bool = Field(description="Whether the message was edited, in a branch of the conversation")


# Levels of JSON that is shown as it is stored.
_MAX_LEVELS = 32


def view_in_conversation(message: StoredMessage, *, has_branches: bool) -> ConversationMessage:
    """Show a stored message of a conversation as callers see it."""
    context, urls = _json(message.document_context), _json(message.image_urls)
    return ConversationMessage(
        **vars(view(message)),
        model_cost=None if message.cost is None else float(message.cost),
        image_urls=urls if isinstance(urls, list) and all(isinstance(url, str) for url in urls) else None,
        document_context=context if isinstance(context, dict) else None,
        chart_data=context.get("chart_data") if isinstance(context, dict) else None,
        parent_message_id=_count(message.parent_message_id),
        branch_id=message.branch_id,
        is_active_branch=message.is_active_branch is None or message.is_active_branch != 0,
        has_branches=has_branches,
    )


def _json(stored: str | None) -> Any:
    """Parse stored JSON; None if a response cannot contain it."""
    try:
        value = json.loads(stored or "null")
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if _is_shallow(value, _MAX_LEVELS) else None


def _is_shallow(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(item, levels - 1) for item in inner)


def view(message: StoredMessage) -> MessageView:
    """Convert a stored message for callers."""
    input_tokens, output_tokens = _count(message.input_tokens), _count(message.output_tokens)
    return MessageView(
        id=message.id,
        role=message.role or UNKNOWN_ROLE,
        content=message.content,
        model=None if message.role == "user" else message.model,  # a question's is for its edits
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
