"""The models that answer: any OpenAI-compatible service, or, where none is configured, a small one built in."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

import openai
from openai.types import CompletionUsage

from app.errors import InvalidRequest, UpstreamError, UpstreamTimeout
from models.messages import MAX_TOKENS

OFFLINE_MODEL = "offline"
_TIMEOUT_SECONDS = 120.0
_CHARACTERS_PER_TOKEN = 4


class Prompt(TypedDict):
    """One message of a conversation, as it is sent to a model."""

    role: str
    content: str


class TokenCounts(NamedTuple):
    """Tokens of one answer; the cached ones are part of the input. Estimated where the model's service told none."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    estimated: bool = False


class Answer(NamedTuple):
    """What came of asking a model. With `error` the content is what had come before it, and the tokens may be None."""

    content: str
    model: str
    tokens: TokenCounts | None
    error: UpstreamError | None = None


class Upstream(Protocol):
    """A model's service. Failures are part of the answer, so that a message can be settled either way."""

    api_url: str | None

    def model_for(self, requested: str | None) -> str:
        """The model that will be asked."""

    async def complete(self, prompts: Sequence[Prompt], model: str) -> Answer:
        """Asks the model and waits for all of its answer."""

    async def close(self) -> None:
        """Closes its connections."""


def connect(base_url: str, api_key: str, model: str) -> Upstream:
    """The configured upstream; the built-in one where the URL is empty."""
    return OpenAIUpstream(base_url, api_key, model) if base_url else OfflineUpstream()


def estimate_tokens(prompts: Sequence[Prompt], content: str) -> TokenCounts:
    """A guess by length, for answers whose tokens nobody told."""
    return TokenCounts(
        input_tokens=sum(_guess(prompt["content"]) for prompt in prompts),
        output_tokens=_guess(content),
        estimated=True,
    )


def _guess(text: str) -> int:
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


class OfflineUpstream:
    """Answers by saying what it was told, so that everything works with no account."""

    api_url = None

    def model_for(self, requested: str | None) -> str:
        """Always the built-in model, so that no other's price is ever taken."""
        return OFFLINE_MODEL

    async def complete(self, prompts: Sequence[Prompt], model: str) -> Answer:
        """Repeats the last message."""
        content = f"You said: {prompts[-1]['content']}"
        return Answer(content, model, estimate_tokens(prompts, content))

    async def close(self) -> None:
        """Nothing to close."""


class OpenAIUpstream:
    """Any service that speaks OpenAI's Chat Completions."""

    def __init__(self, base_url: str, api_key: str, default_model: str) -> None:
        self.api_url: str | None = base_url
        self._default_model = default_model
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key=api_key or "none", timeout=_TIMEOUT_SECONDS, max_retries=0
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

    async def complete(self, prompts: Sequence[Prompt], model: str) -> Answer:
        """Asks once; retries nothing, since a request that failed may have been billed."""
        messages: Any = list(prompts)
        try:
            completion = await self._client.chat.completions.create(model=model, messages=messages)
            content = completion.choices[0].message.content or ""
        except openai.APITimeoutError:
            return Answer("", model, None, UpstreamTimeout("The model did not answer in time."))
        except openai.APIStatusError as error:
            return Answer(
                "", model, None, UpstreamError(f"The model's service answered with status {error.status_code}.")
            )
        except openai.OpenAIError:
            return Answer("", model, None, UpstreamError("The model's service could not be reached."))
        except (AttributeError, IndexError, TypeError, ValueError):
            return Answer("", model, None, UpstreamError("The model's service answered with something unreadable."))
        tokens = read_usage(completion.usage) or estimate_tokens(prompts, content)
        return Answer(content, completion.model or model, tokens)

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.close()


def read_usage(usage: CompletionUsage | None) -> TokenCounts | None:
    """The token counts that a service reports; None where they are missing or cannot be true."""
    if usage is None:
        return None
    details = getattr(usage, "prompt_tokens_details", None)
    counts = TokenCounts(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens or 0,
        cached_input_tokens=getattr(details, "cached_tokens", None) or 0,
    )
    whole = all(type(count) is int and 0 <= count <= MAX_TOKENS for count in counts[:3])
    return counts if whole and counts.cached_input_tokens <= counts.input_tokens else None
