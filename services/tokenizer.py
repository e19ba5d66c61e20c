"""Counting tokens ourselves, offline, where a model's service does not say: an estimate, and marked as one."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypedDict

from anyio import to_thread

_ENCODING = "o200k_base"
_TOKENS_AROUND_A_MESSAGE = 3
_TOKENS_BEFORE_AN_ANSWER = 3


class Prompt(TypedDict):
    """One message of a conversation, as it is sent to a model."""

    role: str
    content: str


class TokenCounts(NamedTuple):
    """Tokens of one answer; the cached ones are part of the input."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    estimated: bool = False


async def estimate(prompts: Sequence[Prompt], content: str) -> TokenCounts:
    """The tokens of a prompt and its answer by OpenAI's newest public encoding; other models' differ by some percent.

    Messages are framed as in OpenAI's "How to count tokens with tiktoken" (three tokens each, three before the answer).
    """
    return await to_thread.run_sync(_estimate, prompts, content)


def _estimate(prompts: Sequence[Prompt], content: str) -> TokenCounts:
    framing = _TOKENS_AROUND_A_MESSAGE * len(prompts) + _TOKENS_BEFORE_AN_ANSWER
    said = sum(count(prompt["role"]) + count(prompt["content"]) for prompt in prompts)
    return TokenCounts(framing + said, count(content), estimated=True)


def count(text: str) -> int:
    """The tokens of a text, whatever is in it."""
    return len(_encoding().encode_ordinary(text))


@cache
def _encoding() -> Any:
    import bpe_openai  # takes most of a second and 150 MB; a process whose upstream tells its usage never needs it

    return bpe_openai.get_encoding(_ENCODING)
