"""Call a service that speaks OpenAI's Chat Completions."""

import functools
import json
import logging
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import tenacity
from anyio import to_thread
from yarl import URL

from app import metrics
from app.errors import InvalidRequest, UpstreamError, UpstreamTimeout
from services.chat import finish_reasons, kept_connections, listening, redaction, tokenizer, upstream_failures
from services.chat.completions import Completion, Heard
from services.chat.event_streams import Unreadable, WebPage
from services.chat.kept_connections import Sending
from services.chat.listening import Hear
from services.chat.redaction import Redaction
from services.chat.tokenizer import Prompt, TokenCounts
from services.chat.upstream import NO_PARAMETERS, OfflineUpstream, Reply, Upstream
from services.chat.upstream_failures import MAX_WAIT_SECONDS, ServiceError

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_OLD_NAME, _NEW_NAME = "max_tokens", "max_completion_tokens"
_MAX_CONNECTIONS = 1000
# Of an answer: far more than any service sends, where aiohttp allows 128 of 8 KiB.
_MAX_HEADERS, _MAX_HEADER_BYTES = 1_000, 65_536


@dataclass(frozen=True)
class Timeouts:
    """Seconds to connect, and between two pieces of an answer."""

    connect: float = 5.0
    read: float = 60.0


def connect(base_url: str, api_key: str, model: str, timeouts: Timeouts | None = None) -> Upstream:
    """Return the configured upstream; the built-in one if the URL is empty."""
    return OpenAIUpstream(base_url, api_key, model, timeouts or Timeouts()) if base_url else OfflineUpstream()


class _Failed(Exception):
    """An attempt failed: the service's error, or the connection's."""

    def __init__(
        self,
        completion: Completion,
        *,
        service: ServiceError | None = None,
        problem: UpstreamError | None = None,
        words: str = "",
        may_retry: bool = False,
    ) -> None:
        super().__init__(words)
        self.completion = completion
        self.service = service
        self.problem = problem
        self.words = words
        self.may_retry = may_retry or (service is not None and service.is_transient and not completion.is_billed)

    @property
    def may_be_billed(self) -> bool:
        """Whether the service may bill the attempt.

        Such an attempt is counted even if the caller does not wait for its end.
        """
        return self.completion.is_billed or (self.problem is not None and self.problem.accepted)

    @property
    def retry_after(self) -> float:
        """The seconds that the service asks to wait."""
        return (self.service.retry_after if self.service else None) or 0.0


class OpenAIUpstream:
    """Any service that speaks OpenAI's Chat Completions."""

    def __init__(self, base_url: str, api_key: str, default_model: str, timeouts: Timeouts) -> None:
        self.api_url: str | None = base_url
        self._default_model = default_model
        self._endpoint = _endpoint(base_url)
        self._secrets = redaction.secrets_of(api_key, base_url)
        self._headers = {"Content-Type": "application/json", "User-Agent": "foundation-be"}
        if api_key and self._endpoint.user is None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeouts = timeouts
        self._new_names: set[str] = set()
        """Models that accept only `max_completion_tokens`, not `max_tokens`, such as OpenAI's reasoning models."""
        self._left_out: dict[str, frozenset[str]] = {}
        """For each model, the parameters that the service refuses and that no caller asked for."""

    @functools.cached_property
    def _session(self) -> aiohttp.ClientSession:
        """The connections, made in the event loop of the first request."""
        limits = self._timeouts
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS),
            timeout=aiohttp.ClientTimeout(connect=limits.connect, sock_connect=limits.connect, sock_read=limits.read),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[kept_connections.tracing()],
            trust_env=bool(urllib.request.getproxies()),
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            max_headers=_MAX_HEADERS,
        )

    def model_for(self, requested: str | None) -> str:
        """Return the requested model, or `LLM_MODEL`.

        Raises:
            InvalidRequest: no model was requested, and `LLM_MODEL` is not set.
        """
        model = requested or self._default_model
        if not model:
            raise InvalidRequest({"model": ["No model was named, and LLM_MODEL is not set."]})
        return model

    async def ask(
        self,
        prompts: Sequence[Prompt],
        model: str,
        hear: Hear | None,
        heard: Heard | None = None,
        parameters: Mapping[str, Any] = NO_PARAMETERS,
    ) -> Reply:
        """Ask for an answer; retry a request unless it may be billed.

        A request is retried if the service refused it temporarily or was not reached.

        Raises:
            UpstreamError: the service failed, or its answer is unreadable.
            UpstreamBusy: the service asks for a longer pause than `MAX_WAIT_SECONDS`, or repeatedly for a short one.
            UpstreamTimeout: the service did not answer or continue in time.
        """
        hidden = Redaction(self._secrets, [prompt["content"] for prompt in prompts])
        heard = heard or Heard()
        body: Mapping[str, Any] = {**parameters, "model": model, "messages": [_as_sent(prompt) for prompt in prompts]}
        if model in self._new_names:
            body = _with_new_name(body)
        try:
            completion: Completion = await _RETRYING.copy()(self._ask, body, hear, heard, hidden)
        except _Failed as failed:
            problem, reason = await to_thread.run_sync(_explained, failed, hidden)
            name = hidden.clean(model)
            logger.warning("model %s at %s failed: %s", name, self._endpoint.host, reason)
            if failed.completion.is_billed:
                problem.accepted, problem.partial = True, await reply(failed.completion, prompts)
            raise problem from failed.__cause__
        return await reply(completion, prompts)

    async def _ask(self, body: Mapping[str, Any], hear: Hear | None, heard: Heard, hidden: Redaction) -> Completion:
        """Try once, without the parameters that the service refuses for this model.

        Once a request succeeds, later requests to this model omit the parameters, too. Only parameters that this module
        adds are left out. If the service refuses a parameter of the caller, the caller gets the error.
        """
        model = body["model"]
        left_out = self._left_out.get(model, frozenset())
        while True:
            options = _options(hear is not None, left_out)
            completion = heard.completion = Completion(model)
            heard.is_asked = True
            try:
                await self._post({**body, **options}, completion, hear, heard)
            except _Failed as failed:
                heard.is_asked = failed.may_be_billed
                refused = await to_thread.run_sync(_refused, failed.service, options, hidden)
                if not refused and not await to_thread.run_sync(_wants_new_name, failed.service, body, hidden):
                    raise
                left_out |= refused
                if not refused:
                    body = _with_new_name(body)
            else:
                self._remember(model, left_out, body)
                return completion

    def _remember(self, model: str, left_out: frozenset[str], body: Mapping[str, Any]) -> None:
        """Remember the parameters that succeeded for the next request to the model."""
        if left_out:
            self._left_out[model] = left_out
        if _NEW_NAME in body:
            self._new_names.add(model)

    async def _post(self, body: Mapping[str, Any], completion: Completion, hear: Hear | None, heard: Heard) -> None:
        try:
            content = json.dumps(body).encode()
            async with await self._send(content, completion) as response:
                if not 200 <= response.status < 300:
                    error = await listening.read_error(response)
                    service = upstream_failures.read_body(response.status, error, response.headers)
                    raise _Failed(completion, service=service)
                await listening.listen(response, completion, hear, heard.room)
        except (aiohttp.ClientError, Unreadable) as error:
            if completion.error is None:
                raise _broken(completion, error) from error
        if completion.error is not None:
            raise _Failed(completion, service=upstream_failures.read(None, completion.error))
        if completion.finish_reason == finish_reasons.ERROR:
            raise _Failed(completion, service=ServiceError(None, words="the answer ended with an error"))

    async def _send(self, content: bytes, completion: Completion) -> aiohttp.ClientResponse:
        sending = Sending()
        try:
            return await self._session.post(self._endpoint, data=content, trace_request_ctx=sending)
        except (aiohttp.NonHttpUrlClientError, ValueError) as error:  # the URL, or a header that cannot be sent
            problem = UpstreamError("The model's service cannot be called.")
            raise _Failed(completion, problem=problem, words=_words(error)) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if not sending.is_stale:
                raise
            raise _Failed(completion, problem=_unreached(), words=_words(error), may_retry=True) from error

    async def close(self) -> None:
        """Close the connections."""
        if "_session" in vars(self):
            await self._session.close()


def _as_sent(prompt: Prompt) -> Mapping[str, Any]:
    if "images" not in prompt:
        return prompt
    images = [{"type": "image_url", "image_url": {"url": url}} for url in prompt["images"]]
    return {"role": prompt["role"], "content": [{"type": "text", "text": prompt["content"]}, *images]}


def _endpoint(base_url: str) -> URL:
    url = URL(base_url)
    path = url.raw_path.rstrip("/").removesuffix("/chat/completions")
    return url.with_path(f"{path}/chat/completions", encoded=True, keep_query=True)


def _options(is_stream: bool, left_out: frozenset[str]) -> dict[str, Any]:
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if is_stream else {}
    if "stream" in left_out:
        return {}
    return {name: value for name, value in options.items() if name not in left_out}


def _refused(service: ServiceError | None, options: Mapping[str, Any], hidden: Redaction) -> frozenset[str]:
    if service is None:
        return frozenset()
    return frozenset(name for name in options if service.refuses(name, hidden))


def _wants_new_name(service: ServiceError | None, body: Mapping[str, Any], hidden: Redaction) -> bool:
    return service is not None and _OLD_NAME in body and service.refuses(_NEW_NAME, hidden)


def _with_new_name(body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {_NEW_NAME if name == _OLD_NAME else name: value for name, value in body.items()}


def _may_retry(error: BaseException) -> bool:
    return isinstance(error, _Failed) and error.may_retry and error.retry_after <= MAX_WAIT_SECONDS


_backoff = tenacity.wait_random_exponential(multiplier=0.2, max=2)


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(_backoff(state), error.retry_after if isinstance(error, _Failed) else 0.0)


_RETRYING = tenacity.AsyncRetrying(
    retry=tenacity.retry_if_exception(_may_retry),
    stop=tenacity.stop_after_attempt(_ATTEMPTS),
    wait=_pause,
    before_sleep=lambda _: metrics.tried_again("model"),
    reraise=True,
)


def _broken(completion: Completion, error: Exception) -> _Failed:
    """Return the failure that a connection error means."""
    problem, may_retry = UpstreamError("The model's answer was interrupted, or cannot be read.", accepted=True), False
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        problem, may_retry = UpstreamTimeout("The model did not answer in time."), True
    elif isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError):
        problem, may_retry = _unreached(), True
    elif isinstance(error, aiohttp.TooManyRedirects):
        problem = UpstreamError("The model's service redirects requests without end.")
    elif isinstance(error, aiohttp.ClientResponseError) and error.message.startswith("Bad status line"):
        problem = _unreached()  # the peer does not speak HTTP
    elif isinstance(error, WebPage):
        problem = UpstreamError("The model's service answered with a web page.")
    elif isinstance(error, aiohttp.ServerTimeoutError):
        problem = UpstreamTimeout("The model did not continue in time.", accepted=True)
    return _Failed(completion, problem=problem, words=_words(error), may_retry=may_retry)


def _unreached() -> UpstreamError:
    return UpstreamError("The connection to the model's service failed.")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _explained(failed: _Failed, hidden: Redaction) -> tuple[UpstreamError, str]:
    """Return the error for the caller, and the reason for the log."""
    if failed.service is not None:
        return upstream_failures.as_problem(failed.service, hidden), upstream_failures.log_line(failed.service, hidden)
    return failed.problem or UpstreamError("The model failed."), hidden.clean(failed.words)


async def reply(completion: Completion, prompts: Sequence[Prompt]) -> Reply:
    """Return the answer as far as it has arrived.

    If the service reported only input or only output tokens, estimate the other number.
    """
    reported = completion.usage.read(answered=completion.is_answered)
    content, reasoning = completion.content, completion.reasoning
    input_tokens, output_tokens = reported.input_tokens, reported.output_tokens
    tokens: TokenCounts | None = None
    if input_tokens is not None and output_tokens is not None:
        tokens = TokenCounts(input_tokens, output_tokens, reported.cached_input_tokens)
    elif input_tokens is not None or output_tokens is not None:
        guess = await tokenizer.estimate(prompts, content + reasoning)
        tokens = TokenCounts(
            guess.input_tokens if input_tokens is None else input_tokens,
            guess.output_tokens if output_tokens is None else output_tokens,
            reported.cached_input_tokens,
            estimated=True,
        )
    return Reply(
        content, completion.model, tokens, completion.finish_reason, reasoning, reported.details, reported.cost
    )
