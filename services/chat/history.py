"""Select the messages of a conversation that a model is sent.

These are whole exchanges, in strictly alternating roles, as many as the model's context holds.

1. A question is sent only together with its answer. A question is left out if its answer failed, is pending, is empty
   or never came. Services that require alternating roles then continue to accept the conversation.
2. The question of an answer is the latest open one of the same instant, since a turn stores both at once; otherwise
   the latest open one. An answer without a question continues the answer before it.
3. Messages with the role `system` come first, as one message. Any other unknown role counts as `user`.
4. If the conversation exceeds the model's context, the oldest exchanges are left out. Whenever the service still finds
   the prompt too long, the older half of the exchanges is left out, until only the question is sent.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from anyio import to_thread
from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import ownership
from models import Message
from services.chat import conversations, images, tokenizer
from services.chat.tokenizer import Prompt

# Tokens: the assumed context of a model whose context is unknown.
FALLBACK_CONTEXT = 128_000

# Of the context, 1 / `_ANSWER_SHARE` is reserved for the answer, and at most `_ANSWER_TOKENS` tokens.
_ANSWER_SHARE = 4
_ANSWER_TOKENS = 8_192

# The most messages and bytes that are read of one conversation, latest first. The largest contexts hold less.
MAX_MESSAGES = 1_000
_MAX_BYTES = 16 * 2**20

# Bytes of UTF-8. English has 4 to 5; few texts of a conversation's length have fewer than 3.
_BYTES_PER_TOKEN = 3

_TOKENS_AROUND_A_MESSAGE = 4
_NEVER_SENT = frozenset({"pending", "failed"})


async def prompts(session: AsyncSession, user_id: int | None, conversation_id: str, answer_id: int) -> list[Prompt]:
    """Return the prompts for a pending answer, oldest first.

    Old rows may have any role, and bytes as content.
    """
    sized = conversations.newest(session, user_id, conversation_id, answer_id, MAX_MESSAGES)
    columns: Select[*tuple[Any, ...]] = select(
        *(Message.id, Message.role, Message.status, Message.content, Message.image_urls),
        conversations.readable(session, Message.created_at),
    )
    found = columns.join(sized, sized.c.id == Message.id).where(sized.c.size <= _MAX_BYTES).order_by(Message.id)
    rows = await session.execute(found.where(ownership.of_user(session, Message.user_id, user_id)))
    return await images.load(session, alternating(rows.all()), user_id)


def alternating(rows: Iterable[Any]) -> list[Prompt]:
    """Return the exchanges among messages, then the open question.

    The open question is the one that the last message, a pending answer, belongs to. The images are URLs, as stored.
    """
    rows = list(rows)
    systems: list[str] = []
    exchanges: list[tuple[_Question, str]] = []
    unanswered: list[_Question] = []
    question = None
    for row in rows:
        content = (row.content or "").replace("\x00", "\ufffd")
        if row.role == "assistant":
            question = _question_of(row, unanswered)
            is_answer = bool(content) and row.status not in _NEVER_SENT
            if question is not None and is_answer:
                exchanges.append((question, content))
            elif is_answer and exchanges:
                asked, answered = exchanges[-1]
                exchanges[-1] = asked, f"{answered}\n\n{content}"
        elif content and row.status not in _NEVER_SENT:
            asked = _Question(row.created_at, content, images.urls_in(row.image_urls))
            systems.append(content) if row.role == "system" else unanswered.append(asked)
    found: list[Prompt] = [{"role": "system", "content": "\n\n".join(systems)}] if systems else []
    for asked, answered in exchanges:
        found += [asked.prompt, {"role": "assistant", "content": answered}]
    is_pending = bool(rows) and rows[-1].role == "assistant" and rows[-1].status == "pending"
    if is_pending and question is not None:
        found.append(question.prompt)
    return found


def with_system(prompts: Sequence[Prompt], system: str | None) -> list[Prompt]:
    """Return the prompts with a system message first.

    The text of system messages among the prompts follows the new text, in the same message.
    """
    if system is None:
        return list(prompts)
    texts = [system, *(prompt["content"] for prompt in prompts if prompt["role"] == "system")]
    said = [prompt for prompt in prompts if prompt["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(texts)}, *said]


class _Question(NamedTuple):
    created_at: datetime | None
    content: str
    images: Sequence[str]

    @property
    def prompt(self) -> Prompt:
        prompt: Prompt = {"role": "user", "content": self.content}
        return {**prompt, "images": self.images} if self.images else prompt


def _question_of(answer: Any, unanswered: list[_Question]) -> _Question | None:
    """Remove an answer's question from the open ones; return the question."""
    for index in reversed(range(len(unanswered))):
        if answer.created_at is not None and unanswered[index].created_at == answer.created_at:
            return unanswered.pop(index)
    return unanswered.pop() if unanswered else None


async def fitting(prompts: Sequence[Prompt], context_tokens: int, answer_tokens: int | None = None) -> list[Prompt]:
    """Return the prompts without the oldest exchanges that exceed the context.

    The system message and the last question are always kept. A short history is not tokenized.

    Args:
        prompts: as `prompts` returns them.
        context_tokens: the model's context, answer included.
        answer_tokens: the caller's limit for the answer, if any. Services add the limit to the prompt's tokens, and
            refuse a sum above the context.
    """
    spare = min(_ANSWER_TOKENS, context_tokens // _ANSWER_SHARE)
    if answer_tokens is not None and answer_tokens < context_tokens:
        spare = answer_tokens
    room = context_tokens - spare
    if sum(_most_tokens(prompt) for prompt in prompts) <= room:
        return list(prompts)
    return await to_thread.run_sync(_cut, prompts, room)


def newer_half(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts without the older half of their exchanges, rounded up."""
    said = [prompt for prompt in prompts if prompt["role"] != "system"]
    kept = 1 + 2 * (len(said) // 2 // 2)
    return [*(prompt for prompt in prompts if prompt["role"] == "system"), *said[-kept:]]


def _most_tokens(prompt: Prompt) -> int:
    text = len(prompt["content"].encode("utf-8", "replace")) // _BYTES_PER_TOKEN
    return text + tokenizer.of_images(prompt) + _TOKENS_AROUND_A_MESSAGE


def _cut(prompts: Sequence[Prompt], room: int) -> list[Prompt]:
    systems = [prompt for prompt in prompts if prompt["role"] == "system"]
    said = [prompt for prompt in prompts if prompt["role"] != "system"]
    kept = said[-1:]
    room -= sum(_tokens(prompt) for prompt in (*systems, *kept))
    for start in range(len(said) - 3, -1, -2):
        exchange = said[start : start + 2]
        room -= sum(_tokens(prompt) for prompt in exchange)
        if room < 0:
            break
        kept = [*exchange, *kept]
    return [*systems, *kept]


def _tokens(prompt: Prompt) -> int:
    return tokenizer.count(prompt["content"]) + tokenizer.of_images(prompt) + _TOKENS_AROUND_A_MESSAGE
