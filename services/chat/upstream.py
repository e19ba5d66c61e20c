"""The interface to the models that answer, and the small one that is built in."""

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
    """A whole answer; its tokens are None where the service reported none."""

    content: str
    model: str
    tokens: TokenCounts | None
    finish_reason: str | None = None
    """One of `services.chat.finish_reasons`, or the service's own word."""
    reasoning: str = ""
    """What the model thought, where the service shows it; part of the output tokens, not of the content."""
    details: Details = NO_DETAILS
    """Further counts of the reported tokens, and the service tier."""
    cost: Decimal | None = None
    """Dollars, where the service says what it charges."""


class Upstream(Protocol):
    """A model's service."""

    @property
    def api_url(self) -> str | None:
        """Where it is; None for the built-in one."""

    def model_for(self, requested: str | None) -> str:
        """The model that will be asked."""

    async def ask(
        self,
        prompts: Sequence[Prompt],
        model: str,
        hear: Hear | None,
        heard: Heard | None = None,
        parameters: Mapping[str, Any] = NO_PARAMETERS,
    ) -> Reply:
        """Ask for an answer, streamed where somebody hears it.

        Args:
            prompts: what is asked, in strictly alternating roles.
            model: the model.
            hear: is given each piece of the answer.
            heard: holds what came if the call is cancelled.
            parameters: further parameters of the request, such as `temperature`.

        Raises:
            UpstreamError: it failed; `accepted` says whether it may have worked, and billed, all the same. What came
                before the failure, with the tokens that were reported, is in `partial`.
        """

    async def close(self) -> None:
        """Closes its connections."""


class OfflineUpstream:
    """Answers by saying what it was told, so that everything works with no account."""

    api_url: str | None = None

    def model_for(self, requested: str | None) -> str:
        """Always the built-in model, so that no other's price is ever taken."""
        return OFFLINE_MODEL

    async def ask(
        self,
        prompts: Sequence[Prompt],
        model: str,
        hear: Hear | None,
        heard: Heard | None = None,
        parameters: Mapping[str, Any] = NO_PARAMETERS,
    ) -> Reply:
        """Repeat the last message, a word at a time; the tokens are words."""
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
        """Nothing to close."""
