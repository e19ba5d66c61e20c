"""Read why a model's service failed; report the reason.

The log always gets the reason. The caller gets the reason if it helps the caller.
"""

import email.utils
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app import clock
from app.errors import UpstreamBusy, UpstreamError, UpstreamTooLong
from services.chat.redaction import Redaction

MAX_WAIT_SECONDS = 10.0
"""If a service asks for a longer pause, the turn is not retried."""

_MAX_RETRY_AFTER_SECONDS = 86_400
_MAX_READ = 4000
_MAX_NAME = 60
_MAX_DEPTH = 5
_REFUSALS = frozenset({None, 400, 404, 415, 422, 501})
_TRANSIENT = frozenset({429, 500, 502, 503, 529})

_INNER_KEYS = ("error", "errors", "detail", "base_resp", "metadata", "innererror")
_MESSAGE_KEYS = (
    "message",
    "msg",
    "error_msg",
    "error_message",
    "status_msg",
    "detail",
    "description",
    "title",
    "raw",
)
_CODE_KEYS = ("code", "error_code", "status_code", "statusCode", "status")

_KEY = re.compile(r"api[ _-]?key|unauthori[sz]ed|authenticat|credential|permission|forbidden|invalid token", re.I)
_QUOTA = re.compile(
    r"insufficient[ _](quota|balance|credit|fund)|current[ _]quota|billing|payment required|arrear|out of credits"
    r"|usage limit"
    r"|credit balance|available credits|spending limit|余额",
    re.I,
)
_CONTEXT = re.compile(
    r"context[ _-]?(length|window|size|limit)|maximum (context|prompt|input|number of tokens)|too many (input )?tokens"
    r"|exceed_context|(prompt|input|request|message)s?( is| are)? too (long|large)|string_above_max|reduce the length"
    r"|(prompt|input) token count|prompt exceeds|must have less than \d+ tokens|range of input length",
    re.I,
)
_FILTER = re.compile(
    r"content[ _-]?(filter|polic|management|moderation|exists risk)|responsible ?ai|moderation|safety|flagged"
    r"|inappropriate|data_inspection|prohibited_content|usage (polic|guideline)|high risk|guardrail|敏感",
    re.I,
)
_MODEL = re.compile(
    r"model[ _]not[ _](found|supported|exist|available)|(unknown|invalid|no such|unsupported) model"
    r"|(model|deployment)s?\b.{0,120}\b(does not exist|not (be )?found|doesn't exist)"
    r"|model\b.{0,120}\bis not (supported|available|a valid)|not[ _]found.{0,40}\bmodel\b"
    r"|model identifier is invalid|not a valid model|no endpoints found|模型不存在",
    re.I | re.S,
)
_PARAMETER = re.compile(
    r"(unknown|unsupported|invalid|missing|unrecogni[sz]ed|extra)[ _-](required[ _])?(request[ _])?"
    r"(parameter|argument|value|field|type|request|forbidden|property)",
    re.I,
)
_BUSY = re.compile(
    r"overload|rate[ _-]?limit|too many requests|server[ _]error|internal|unavailable|capacity|busy|try again"
    r"|timed? ?out",
    re.I,
)


# In a rate limit error: "try again in 1m12.5s", "retry after 26 seconds".
_LENGTH = r"([0-9]{1,9}(?:\.[0-9]{1,12})?) ?(ms|s|sec(?:ond)?s?|m|min(?:ute)?s?|h|hours?)(?![a-z])"
_PARTS_OF_A_PAUSE = re.compile(_LENGTH, re.I)
_PAUSE = re.compile(rf"\b(?:again|retry) (?:in|after) ((?:{_LENGTH} ?)+)", re.I)
_PAUSE_KEYS = ("retryDelay", "retry_after", "retryAfter")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class ServiceError:
    """A service's error, with its words unchanged.

    `status` is None unless the answer had the status of an error.
    """

    status: int | None
    code: str = ""
    kind: str = ""
    param: str = ""
    words: str = ""
    retry_after: float | None = None
    """Seconds."""

    @property
    def _all(self) -> str:
        return f"{self.code} {self.kind} {self.words}"

    @property
    def is_quota(self) -> bool:
        """Whether the operator's quota is exhausted, so that a retry is useless."""
        named = _QUOTA.search(f"{self.code} {self.kind}") is not None
        return named or (self.retry_after is None and _QUOTA.search(self.words) is not None)

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed soon."""
        if self.is_quota or self.is_too_long:
            return False
        if self.status is not None:
            return self.status in _TRANSIENT
        number = int(self.code) if self.code.isdecimal() and len(self.code) == 3 else None
        return number in _TRANSIENT if number is not None else _BUSY.search(self._all) is not None

    @property
    def is_too_long(self) -> bool:
        """Whether the conversation is longer than the model's context."""
        return self.status != 429 and _CONTEXT.search(self._all) is not None

    @property
    def is_rate_limit(self) -> bool:
        """Whether the service reported a rate limit, with any status."""
        return self.status == 429 or (self.status is None and self.code == "429")

    @property
    def helps_the_caller(self) -> bool:
        """Whether the caller can act on the error and gets its words.

        A content filter and an unknown model are reported even if the service calls them a lack of permission.
        """
        if self.status in (401, 402) or self.is_quota or "Traceback" in self.words:
            return False
        if _FILTER.search(self._all) or (self.status == 404 and _MODEL.search(self._all)):
            return True
        if self.status == 403 or _KEY.search(self._all):
            return False
        about_them = (_CONTEXT, _MODEL, _PARAMETER)
        return bool(self.param) or any(pattern.search(self._all) for pattern in about_them)

    def refuses(self, parameter: str, redaction: Redaction) -> bool:
        """Return whether the service refuses the request and names this parameter."""
        if self.status not in _REFUSALS:
            return False
        named = rf"['\"`]{parameter}['\"`]" if "_" not in parameter else rf"\b{parameter}\b"
        return self.param == parameter or re.search(named, redaction.clean(self.words, _MAX_READ)) is not None


def read(status: int | None, error: Any, headers: Mapping[str, str] | None = None) -> ServiceError:
    """Parse an error in any known form. Never raise."""
    layers = list(_layers(error))
    inner_first = layers[::-1]
    words = " ".join(filter(None, dict.fromkeys(_first([layer], _MESSAGE_KEYS) for layer in layers)))
    pause = _retry_after(headers or {})
    return ServiceError(
        status=status,
        code=_first(inner_first, _CODE_KEYS),
        kind=_first(inner_first, ("type",)),
        param=_first(inner_first, ("param",)),
        words=words,
        retry_after=_pause_in(layers, words) if pause is None else pause,
    )


def read_body(status: int, body: bytes, headers: Mapping[str, str]) -> ServiceError:
    """Parse the body of an answer with an error status. Never raise."""
    text = body.decode("utf-8", "replace")
    try:
        return read(status, json.loads(text), headers)
    except (ValueError, RecursionError):
        return read(status, re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", text, flags=re.S | re.I), headers)


def log_line(error: ServiceError, redaction: Redaction) -> str:
    """Return the reason for the operator, in one line.

    The line holds the status, code, type, parameter and words.
    """
    status = "an error in its answer" if error.status is None else f"status {error.status}"
    code, kind, param = (redaction.clean(text, _MAX_NAME) for text in (error.code, error.kind, error.param))
    named = "".join(f", {name} {text}" for name, text in (("code", code), ("type", kind), ("param", param)) if text)
    words = redaction.clean(error.words)
    return f"{status}{named}: {words}" if words else f"{status}{named}"


def as_problem(error: ServiceError, redaction: Redaction) -> UpstreamError:
    """Return the error for the caller."""
    if error.is_rate_limit and error.retry_after is not None and not error.is_quota:
        seconds = max(1, math.ceil(error.retry_after))
        return UpstreamBusy(f"The model's service is busy. Try again in {seconds} s.", seconds)
    words = redaction.clean(error.words) if error.helps_the_caller else ""
    if words:
        kind = UpstreamTooLong if error.is_too_long else UpstreamError
        return kind(f"The model's service refused the request: {words}")
    if error.status is None:
        return UpstreamError("The model's service reported an error.")
    return UpstreamError(f"The model's service answered with status {error.status}.")


def _layers(error: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield the nested objects of an error, outermost first."""
    if isinstance(error, str):
        yield {"message": error}
    elif isinstance(error, list) and error and depth < _MAX_DEPTH:
        yield from _fields(error) if _is_fields(error) else _layers(error[0], depth + 1)
    elif isinstance(error, dict) and depth < _MAX_DEPTH:
        yield error
        for key in _INNER_KEYS:
            inner = error.get(key)
            if isinstance(inner, dict | list) or key == "error":
                yield from _layers(inner, depth + 1)


def _is_fields(errors: Sequence[Any]) -> bool:
    return all(isinstance(error, dict) and isinstance(error.get("loc"), list) for error in errors)


def _fields(errors: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield one object for FastAPI's list of field errors."""
    texts = [f"{'.'.join(map(str, error['loc']))}: {error.get('msg', '')}" for error in errors[:10]]
    yield {"message": "; ".join(texts), "type": errors[0].get("type")}


def _first(layers: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """Return the first text or integer under these keys, as text."""
    for layer in layers:
        for key in keys:
            value = layer.get(key)
            if (
                isinstance(value, str | int)
                and not isinstance(value, bool)
                and (text := str(value)[:_MAX_READ].strip())
            ):
                return text
    return ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the pause in seconds that the headers ask for.

    The headers are `retry-after-ms` (OpenAI, Azure) and `Retry-After` (RFC 9110), a number or a date.
    """
    for name, unit in (("retry-after-ms", 0.001), ("x-ms-retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        seconds = _seconds(value.strip(), unit)
        if seconds is not None:
            return min(max(seconds, 0.0), _MAX_RETRY_AFTER_SECONDS)
    return None


def _pause_in(layers: Sequence[Mapping[str, Any]], words: str) -> float | None:
    """Return the pause in seconds that the error asks for.

    The pause is in a field (Gemini's `retryDelay` is in the details) or in the words (OpenAI).
    """
    for layer in layers:
        details = layer.get("details")
        parts = [layer, *details] if isinstance(details, list) else [layer]
        for key in _PAUSE_KEYS:
            for part in parts:
                if isinstance(part, dict) and (seconds := _duration(part.get(key))) is not None:
                    return seconds
    found = _PAUSE.search(words)
    return None if found is None else _duration(found[1])


def _duration(value: Any) -> float | None:
    """Return the seconds of a number or a text such as `1m12.5s`."""
    if type(value) in (int, float) and value >= 0:
        return float(min(value, _MAX_RETRY_AFTER_SECONDS))
    parts = _PARTS_OF_A_PAUSE.findall(value.lower()) if isinstance(value, str) else []
    seconds = sum(float(number) * _SECONDS["ms" if unit == "ms" else unit[0]] for number, unit in parts)
    return min(seconds, _MAX_RETRY_AFTER_SECONDS) if parts else None


def _seconds(value: str, unit: float) -> float | None:
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", value, re.ASCII):
        return float(value) * unit
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return (moment - clock.now()).total_seconds() if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None
