"""Define the interface to a model's service, and the built-in model."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from anyio import to_thread

from services.chat import finish_reasons
from services.chat.completions import Heard
from services.chat.listening import Hear
from services.chat.tokenizer import Prompt, TokenCounts
from services.usage.reported_usage import NO_DETAILS, Details

OFFLINE_MODEL = "offline"
_WORDS = re.compile(r"\S+\s*|\s+")
_WORDS_AT_ONCE = 1_000
NO_PARAMETERS: Mapping[str, Any] = MappingProxyType({})


class Reply(NamedTuple):
    """A whole answer. `tokens` is None if the service reported none."""

    content: str
    model: str
    tokens: TokenCounts | None
    finish_reason: str | None = None
    """One of `services.chat.finish_reasons`, or the service's own word."""
    reasoning: str = ""
    """The model's reasoning, if the service returns it: part of the output tokens, not of the content."""
    details: Details = NO_DETAILS
    """Further counts of the reported tokens, and the service tier."""
    cost: Decimal | None = None
    """Dollars, if the service reports its charge."""


class Upstream(Protocol):
    """A model's service."""

    @property
    def api_url(self) -> str | None:
        """The URL of the service; None for the built-in one."""

    def model_for(self, requested: str | None) -> str:
        """Return the model to ask for a requested one."""

    async def ask(
        self,
        prompts: Sequence[Prompt],
        model: str,
        hear: Hear | None,
        heard: Heard | None = None,
        parameters: Mapping[str, Any] = NO_PARAMETERS,
    ) -> Reply:
        """Ask for an answer, which is streamed if `hear` is given.

        Args:
            prompts: the messages, in strictly alternating roles.
            model: the model.
            hear: receives each piece of the answer.
            heard: holds the part that has arrived if the call is cancelled.
            parameters: further parameters of the request, such as `temperature`.

        Raises:
            UpstreamError: the service failed. `accepted` says whether the service may nevertheless have worked and
                billed. `partial` holds the part before the failure, with the reported tokens.
        """

    async def close(self) -> None:
        """Close the connections."""


class OfflineUpstream:
    """Answer by repeating the question, so that no account is necessary."""

    api_url: str | None = None

    def model_for(self, requested: str | None) -> str:
        """Return the built-in model, so that no other model's price applies."""
        return OFFLINE_MODEL

    async def ask(
        self,
        prompts: Sequence[Prompt],
        model: str,
        hear: Hear | None,
        heard: Heard | None = None,
        parameters: Mapping[str, Any] = NO_PARAMETERS,
    ) -> Reply:
        """Repeat the last message word by word; the tokens are words."""
        content = f"You said: {prompts[-1]['content']}"
        if hear is not None:
            for number, word in enumerate(_WORDS.finditer(content)):
                hear(word[0])
                if number % _WORDS_AT_ONCE == 0:
                    await asyncio.sleep(0)
                    await (heard or Heard()).room()
        texts = [content, *(prompt["content"] for prompt in prompts)]
        said, *asked = await to_thread.run_sync(lambda: [len(text.split()) for text in texts])
        return Reply(content, model, TokenCounts(sum(asked), said), finish_reasons.STOP)

    async def close(self) -> None:
        """Do nothing: there are no connections."""
