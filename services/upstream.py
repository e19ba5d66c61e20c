"""The models that answer: any OpenAI-compatible service, or, where none is configured, a small one built in."""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import httpx2
import openai
import tenacity
from anyio import to_thread
from openai.types import CompletionUsage

from app import metrics
from app.errors import InvalidRequest, UpstreamError, UpstreamTimeout
from models.messages import MAX_TOKENS
from services.tokenizer import Prompt, TokenCounts

OFFLINE_MODEL = "offline"
_WORDS = re.compile(r"\S+\s*|\s+")
_WORDS_AT_ONCE = 1_000
_ATTEMPTS = 3
_BUSY = frozenset({429, 500, 502, 503})

Hear = Callable[[str], None]
"""Is given each piece of an answer as it comes."""


class Reply(NamedTuple):
    """A whole answer; its tokens are None where the service told none."""

    content: str
    model: str
    tokens: TokenCounts | None


@dataclass(frozen=True)
class Timeouts:
    """Seconds: to connect, and between two pieces of an answer."""

    connect: float = 5.0
    read: float = 60.0


class Upstream(Protocol):
    """A model's service."""

    @property
    def api_url(self) -> str | None:
        """Where it is; None for the built-in one."""

    def model_for(self, requested: str | None) -> str:
        """The model that will be asked."""

    async def ask(self, prompts: Sequence[Prompt], model: str, hear: Hear | None) -> Reply:
        """Asks for an answer, streamed where somebody hears.

        Raises:
            UpstreamError: it failed; `accepted` says whether it may have worked, and billed, all the same.
        """

    async def close(self) -> None:
        """Closes its connections."""


def connect(base_url: str, api_key: str, model: str, timeouts: Timeouts | None = None) -> Upstream:
    """The configured upstream; the built-in one where the URL is empty."""
    return OpenAIUpstream(base_url, api_key, model, timeouts or Timeouts()) if base_url else OfflineUpstream()


class OfflineUpstream:
    """Answers by saying what it was told, so that everything works with no account."""

    api_url: str | None = None

    def model_for(self, requested: str | None) -> str:
        """Always the built-in model, so that no other's price is ever taken."""
        return OFFLINE_MODEL

    async def ask(self, prompts: Sequence[Prompt], model: str, hear: Hear | None) -> Reply:
        """Repeat the last message, a word at a time; the tokens are words."""
        content = f"You said: {prompts[-1]['content']}"
        if hear is not None:
            for number, word in enumerate(_WORDS.finditer(content)):
                hear(word[0])
                if number % _WORDS_AT_ONCE == 0:
                    await asyncio.sleep(0)
        texts = [content, *(prompt["content"] for prompt in prompts)]
        said, *asked = await to_thread.run_sync(lambda: [len(text.split()) for text in texts])
        return Reply(content, model, TokenCounts(sum(asked), said))

    async def close(self) -> None:
        """Nothing to close."""


class OpenAIUpstream:
    """Any service that speaks OpenAI's Chat Completions."""

    def __init__(self, base_url: str, api_key: str, default_model: str, timeouts: Timeouts) -> None:
        self.api_url: str | None = base_url
        self._default_model = default_model
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or "none",
            timeout=httpx2.Timeout(timeouts.read, connect=timeouts.connect),
            max_retries=0,
        )

    def model_for(self, requested: str | None) -> str:
        """The requested model, or `LLM_MODEL`.

        Raises:
            InvalidRequest: there is neither.
        """
        model = requested or self._default_model
        if not model:
            raise InvalidRequest({"model": ["No model was named, and LLM_MODEL is not set."]})
        return model

    async def ask(self, prompts: Sequence[Prompt], model: str, hear: Hear | None) -> Reply:
        """Asks; a request that was refused or did not get through is sent again, one that may have been billed is not.

        Raises:
            UpstreamError: it failed, or answered with something unreadable.
            UpstreamTimeout: it did not answer, or not go on, in time.
        """
        try:
            return await self._ask(prompts, model, hear)
        except openai.APITimeoutError as error:
            reached = not isinstance(error.__cause__, httpx2.ConnectTimeout)
            raise UpstreamTimeout("The model did not answer in time.", accepted=reached) from error
        except openai.APIStatusError as error:
            raise UpstreamError(f"The model's service answered with status {error.status_code}.") from error
        except openai.APIConnectionError as error:
            reached = not isinstance(error.__cause__, httpx2.ConnectError)
            raise UpstreamError("The connection to the model's service failed.", accepted=reached) from error
        except httpx2.TimeoutException as error:
            raise UpstreamTimeout("The model did not go on in time.", accepted=True) from error
        except (httpx2.HTTPError, openai.OpenAIError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UpstreamError("The model's answer broke off, or cannot be read.", accepted=True) from error

    async def _ask(self, prompts: Sequence[Prompt], model: str, hear: Hear | None) -> Reply:
        async def create(**more: Any) -> Any:
            return await self._client.chat.completions.create(model=model, messages=cast(Any, list(prompts)), **more)

        tries = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_was_not_accepted),
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=2),
            before_sleep=lambda _: metrics.tried_again("model"),
            reraise=True,
        )
        if hear is None:
            completion: Any = await tries(create)
            content = _text(completion.choices[0].message.content or "")
            return Reply(content, _text(completion.model or model), read_usage(completion.usage))
        stream: Any = await tries(create, stream=True, stream_options={"include_usage": True})
        return await _listen(stream, model, hear)

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.close()


async def _listen(stream: openai.AsyncStream[Any], model: str, hear: Hear) -> Reply:
    pieces: list[str] = []
    tokens: TokenCounts | None = None
    finished = False
    async with stream:
        async for chunk in stream:
            model = _text(chunk.model or model)
            tokens = read_usage(chunk.usage) or tokens  # cumulative: the last one counts, never the sum
            for choice in chunk.choices[:1]:
                finished = finished or choice.finish_reason is not None
                if piece := _text(choice.delta.content or ""):
                    pieces.append(piece)
                    hear(piece)
    if not finished and tokens is None:
        raise UpstreamError("The model's answer broke off.", accepted=True)
    return Reply("".join(pieces), model, tokens)


def _text(value: Any) -> str:
    """What a service sent as text, with what no database can store replaced; raises TypeError where it is no text."""
    if not isinstance(value, str):
        raise TypeError(f"not a text: {type(value).__name__}")
    return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _was_not_accepted(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code in _BUSY
    return isinstance(error, openai.APIConnectionError) and isinstance(
        error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout
    )


def read_usage(usage: CompletionUsage | None) -> TokenCounts | None:
    """The tokens that a service reports, cached ones made part of the input; None where they cannot be true.

    OpenAI and DeepSeek (`prompt_cache_hit_tokens`) report cached tokens as part of the prompt's, Anthropic
    (`cache_read_input_tokens`, `cache_creation_input_tokens`) beside them.
    """
    if not isinstance(usage, CompletionUsage):
        return None
    told: dict[str, Any] = {**vars(usage), **(usage.model_extra or {})}  # of any type: the SDK does not validate
    details = told.get("prompt_tokens_details")
    cached = getattr(details, "cached_tokens", None) or told.get("prompt_cache_hit_tokens") or 0
    read, written = told.get("cache_read_input_tokens") or 0, told.get("cache_creation_input_tokens") or 0
    reported = (told.get("prompt_tokens"), told.get("completion_tokens") or 0, cached, read, written)
    if not all(type(count) is int and 0 <= count <= MAX_TOKENS for count in reported):
        return None
    input_tokens = told["prompt_tokens"] if cached else told["prompt_tokens"] + read + written
    counts = TokenCounts(input_tokens, reported[1], cached or read)
    return counts if counts.cached_input_tokens <= counts.input_tokens <= MAX_TOKENS else None
