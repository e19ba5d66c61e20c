"""Estimate tokens offline if a model's service reports no usage.

The result is marked as an estimate.
"""

import logging
import re
import time
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, NotRequired, TypedDict

from anyio import to_thread

logger = logging.getLogger(__name__)

_ENCODING = "o200k_base"
_TOKENS_AROUND_A_MESSAGE = 3
_TOKENS_BEFORE_AN_ANSWER = 3

# Characters. The tokenizer refuses a million characters or 200,000 tokens at once. For a piece of this length, the
# tokenizer holds Python's global lock for at most 4 ms.
_PIECE = 10_000

# Of English text: the simplest estimate.
_BYTES_PER_TOKEN = 4


IMAGE_TOKENS = 765
"""The tokens of an image in an estimate: 1024 × 1024 pixels in tiles of GPT-4o, by OpenAI's "Images and vision"."""


class Prompt(TypedDict):
    """One message of a conversation, as sent to a model."""

    role: str
    content: str
    images: NotRequired[Sequence[str]]
    """Data URLs."""


class TokenCounts(NamedTuple):
    """The tokens of one answer; the input includes the cached ones."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    estimated: bool = False


async def estimate(prompts: Sequence[Prompt], content: str) -> TokenCounts:
    """Estimate the tokens of a prompt and its answer in a thread.

    The encoding is OpenAI's newest public one. The encodings of other models differ by some percent. Messages are
    framed as in OpenAI's "How to count tokens with tiktoken": three tokens each, and three before the answer. If the
    tokenizer fails, four bytes count as one token. Every text of any length has an estimate.
    """
    try:
        return await to_thread.run_sync(_estimate, prompts, content)
    except Exception:
        logger.exception("the tokenizer failed; tokens are estimated from bytes")
        sent = sum(_bytes(prompt["role"]) + _bytes(prompt["content"]) for prompt in prompts)
        images = sum(of_images(prompt) for prompt in prompts)
        return TokenCounts(tokens_of_bytes(sent) + images, tokens_of_bytes(_bytes(content)), estimated=True)


def _estimate(prompts: Sequence[Prompt], content: str) -> TokenCounts:
    framing = _TOKENS_AROUND_A_MESSAGE * len(prompts) + _TOKENS_BEFORE_AN_ANSWER
    said = sum(count(prompt["role"]) + count(prompt["content"]) for prompt in prompts)
    said += sum(of_images(prompt) for prompt in prompts)
    return TokenCounts(framing + said, count(content), estimated=True)


def count(text: str) -> int:
    """Count the tokens of a text of any length, piece by piece."""
    tokens = 0
    for piece in in_pieces(text, _PIECE):
        tokens += len(_encoding().encode_ordinary(piece[0]))
        time.sleep(0)  # lets another thread have Python's global lock
    return tokens


def of_images(prompt: Prompt) -> int:
    """Estimate the tokens of the images of a message."""
    return IMAGE_TOKENS * len(prompt.get("images", ()))


def in_pieces(text: str, length: int) -> Iterator[re.Match[str]]:
    """Split a text into pieces of at most `length` characters.

    Split before white space where possible. The tokenizer splits there as well, so that the pieces have about as many
    tokens as the whole.
    """
    return re.finditer(rf".{{1,{length}}}(?!\S)|.{{1,{length}}}", text, re.DOTALL)


def tokens_of_bytes(size: int) -> int:
    """Estimate the tokens of a text from its size in bytes."""
    return -(-size // _BYTES_PER_TOKEN)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


@cache
def _encoding() -> Any:
    import bpe_openai  # takes most of a second and 150 MB; not needed if the upstream reports usage

    return bpe_openai.get_encoding(_ENCODING)
