"""Read the usage that a model's service reports, in any form.

1. A report is an object that holds token counts: at the top of a chunk or body, or below a key that names usage
   (`usage`, `x_groq.usage`, `usageMetadata`, `billed_units`, the `usage` of a choice or message). Of one chunk or body,
   the nearest reports count, `usage` first; deeper ones only complete them. Usage of more than the answer, such as
   `session_usage` or `daily_usage`, is no report.
2. A count is a whole number from 0 to 2,147,483,647, also as a whole float or a text. Any other value counts as absent
   and does not affect the other fields.
3. The reports of one answer are cumulative. They merge field by field by the maximum, so that an empty or repeated
   report changes nothing.
4. `total_tokens` proves the meaning of the parts. Cached and written tokens are inside or beside the prompt's tokens,
   and reasoning tokens are inside or beside the completion's. The reading whose sum is the total is right.
5. Without such a proof, each field means what its vendor documents: OpenAI's cached and reasoning tokens are inside,
   Anthropic's `cache_read_input_tokens` and `cache_creation_input_tokens` are beside. A part larger than its whole is
   beside as well. If the total excludes that reading, the report contradicts itself and its input is unknown.
6. A total above every reading includes output without a field (Gemini's thinking): the rest is output.
7. A missing half follows from the total and the other half.
8. For a real answer, zero means unknown: an answer has a prompt, and a text has tokens.
9. Cost is the service's charge in US dollars: `cost`, `total_cost`, `estimated_cost`, xAI's `cost_in_usd_ticks`
   (1e-10 dollars). With OpenRouter's `is_byok`, the vendor's own charge is added.

Sources: https://platform.openai.com/docs/api-reference/chat/object,
https://platform.claude.com/docs/en/build-with-claude/prompt-caching, https://docs.x.ai/developers/cost-tracking,
https://ai.google.dev/api/generate-content#UsageMetadata, https://openrouter.ai/docs/use-cases/usage-accounting.
"""

import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from itertools import product
from typing import Any, NamedTuple

from app import money
from models.messages import MAX_TOKENS
from services.usage import reported_names

_MAX_DEPTH = 4
_MAX_CHOICES = 16
_TICKS_PER_DOLLAR = Decimal(10**10)
_NUMBER = re.compile(r"\s*[0-9]{1,15}(\.[0-9]{1,18})?([eE]-?[0-9]{1,2})?\s*", re.ASCII)

_OUTPUT_DETAILS = ("output_audio_tokens", "output_image_tokens", "output_video_tokens")

Details = Mapping[str, int | str]
"""Counts above zero by the names of `genai_prices.Usage`, and `service_tier`: JSON values of bounded size."""

NO_DETAILS: Details = {}


class Reported(NamedTuple):
    """The usage that a service reported; None means unknown.

    Cached tokens are part of the input. `details` describe the same tokens. `cost` is in dollars.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int = 0
    details: Details = NO_DETAILS
    cost: Decimal | None = None


class Reports:
    """All reports of one answer, merged."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._cost: Decimal | None = None
        self._tier: str | None = None

    def add(self, message: Mapping[str, Any]) -> bool:
        """Merge the reports in a chunk or body. Never raise.

        Returns:
            Whether the message reports output. Only the end of an answer or a cumulative report does.
        """
        found: dict[str, int] = {}
        self._tier = _tier(message) or self._tier
        self._add_cost(message)
        for reports in _reports_in(message):
            for report in reports:
                _merge(found, _counts_of(report))
                self._tier = _tier(report) or self._tier
                self._add_cost(report)
            if _is_complete(found):
                break
        _merge(self._counts, found)
        return found.get("completion", 0) > 0 or found.get("total", 0) > found.get("prompt", 0)

    def _add_cost(self, report: Mapping[str, Any]) -> None:
        cost = _cost_of(report)
        if cost is not None:
            self._cost = cost if self._cost is None else max(self._cost, cost)

    def read(self, *, answered: bool) -> Reported:
        """Return the usage reported so far.

        Args:
            answered: whether the model produced anything. If so, zeros count as unknown.
        """
        counts = self._counts
        input_tokens, output_tokens = _halves(counts, answered)
        cost = self._cost
        if cost == 0 and answered and input_tokens is None and output_tokens is None:
            cost = None
        cached = max(counts.get("cached", 0), counts.get("cached_beside", 0))
        cached = cached if cached <= (input_tokens or 0) else 0
        details = _details(counts, cached, (input_tokens or 0) - cached, output_tokens or 0)
        if self._tier:
            details["service_tier"] = self._tier
        return Reported(input_tokens, output_tokens, cached, details, cost)


def _reports_in(message: Mapping[str, Any]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the reports, nearest first.

    These are `usage`, the message itself, and then each level below the message.
    """
    own = message.get("usage")
    yield [own] if isinstance(own, dict) else []
    yield [message]
    level: list[Mapping[str, Any]] = [message]
    for _ in range(_MAX_DEPTH):
        found: list[Mapping[str, Any]] = []
        below: list[Mapping[str, Any]] = []
        for node in level:
            for key, value in node.items():
                if isinstance(value, dict) and not reported_names.is_of_more(key):
                    found += [value] if reported_names.is_place(key) else []
                    below.append(value)
                elif key == "choices" and isinstance(value, list):
                    below += [choice for choice in value[:_MAX_CHOICES] if isinstance(choice, dict)]
        yield found
        level = below


def _is_complete(counts: Mapping[str, int]) -> bool:
    """Return whether the counts name both input and output."""
    prompt = counts.get("prompt", 0)
    return prompt > 0 and (counts.get("completion", 0) > 0 or counts.get("total", 0) > prompt)


def _counts_of(report: Mapping[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, value in report.items():
        name = reported_names.plain(key)
        if isinstance(value, dict):
            _merge(found, _parts_of(value, reported_names.PARTS.get(name, {})))
        elif (field := reported_names.FIELDS.get(name)) and (count := _count(value)) is not None:
            _merge(found, {field: count})
    return found


def _parts_of(parts: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    if not fields:
        return found
    for key, value in parts.items():
        name = reported_names.plain(key)
        if isinstance(value, dict):
            if name in reported_names.INNER and fields is not reported_names.PARTS[name]:
                _merge(found, _parts_of(value, reported_names.PARTS[name]))
        elif (field := fields.get(name)) and (count := _count(value)) is not None:
            _merge(found, {field: count})
    return found


def _merge(into: dict[str, int], more: Mapping[str, int]) -> None:
    for field, count in more.items():
        into[field] = max(into.get(field, 0), count)


def _count(value: Any) -> int | None:
    number = _number(value)
    if number is None or number != int(number) or not 0 <= number <= MAX_TOKENS:
        return None
    return int(number)


def _number(value: Any) -> int | Decimal | None:
    """Return a finite number exactly; None for anything else, booleans included."""
    if type(value) is int:
        return value
    if isinstance(value, float):
        return Decimal(repr(value)) if math.isfinite(value) and abs(value) < 1e18 else None
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return Decimal(value.strip())
    return None


def _halves(counts: Mapping[str, int], answered: bool) -> tuple[int | None, int | None]:
    prompt, completion, total = counts.get("prompt"), counts.get("completion"), counts.get("total")
    beside = _cached(counts) + _written(counts)
    if prompt == 0 and not beside and (answered or completion):
        prompt = None
    if completion == 0 and answered and not counts.get("reasoning"):
        completion = None
    halves: tuple[int | None, int | None]
    if prompt is not None and completion is not None:
        halves = _both(counts, prompt, completion, total)
    elif prompt is not None:
        read = _inputs(counts, prompt)[0]
        halves = read, None if total is None else total - read
    elif completion is not None:
        written = _outputs(counts, completion)[0]
        halves = None if total is None else total - written, written
    else:
        halves = None, None
    input_tokens, output_tokens = halves
    return (
        _believed(input_tokens, zero=not (answered or output_tokens)),
        _believed(output_tokens, zero=not answered),
    )


def _believed(count: int | None, *, zero: bool) -> int | None:
    return count if count is not None and (0 < count <= MAX_TOKENS or (zero and count == 0)) else None


def _both(counts: Mapping[str, int], prompt: int, completion: int, total: int | None) -> tuple[int | None, int | None]:
    inputs, outputs = _inputs(counts, prompt), _outputs(counts, completion)
    for input_tokens, output_tokens in product(inputs, outputs):
        if input_tokens + output_tokens == total:
            return input_tokens, output_tokens
    if total is not None and total > inputs[0] + outputs[0]:
        return inputs[0], total - inputs[0]
    if total == prompt + completion and not _is_beside(counts):
        return None, outputs[0]  # the cached tokens can be neither inside nor beside
    return inputs[0], outputs[0]


def _inputs(counts: Mapping[str, int], prompt: int) -> list[int]:
    """Return all readings of the input, the documented one first."""
    cached, written, tools = _cached(counts), _written(counts), counts.get("tools", 0)
    beside = prompt + cached + written
    inside = [prompt] if cached + written <= prompt else []
    either = [prompt + cached] * (written <= prompt) + [prompt + written] * (cached <= prompt)
    readings = [beside, *inside, *either] if _is_beside(counts) else [*inside, beside, *either]
    return [reading + extra for extra in ((tools, 0) if tools else (0,)) for reading in readings]


def _outputs(counts: Mapping[str, int], completion: int) -> list[int]:
    """Return all readings of the output, the documented one first."""
    reasoning = counts.get("reasoning", 0)
    inside, beside = completion, completion + reasoning
    return [beside, inside] if reasoning > completion else [inside, beside]


def _is_beside(counts: Mapping[str, int]) -> bool:
    """Return whether the report has only Anthropic's cache fields."""
    return not (counts.get("cached") or counts.get("written"))


def _cached(counts: Mapping[str, int]) -> int:
    return max(counts.get("cached", 0), counts.get("cached_beside", 0))


def _written(counts: Mapping[str, int]) -> int:
    by_duration = counts.get("cache_write_5m_tokens", 0) + counts.get("cache_write_1h_tokens", 0)
    return max(counts.get("written", 0), counts.get("written_beside", 0), by_duration)


def _details(counts: Mapping[str, int], cached: int, fresh_tokens: int, output_tokens: int) -> dict[str, int | str]:
    """Return the details of the tokens.

    A detail that is too large to be part of the tokens is left out.
    """
    details: dict[str, int | str] = {}
    written = _written(counts)
    if 0 < written <= fresh_tokens:
        details["cache_write_tokens"] = written
        details |= {field: counts[field] for field in reported_names.DURATIONS if counts.get(field)}
    reasoning = counts.get("reasoning", 0)
    if 0 < reasoning <= output_tokens:
        details["output_reasoning_tokens"] = reasoning
    details |= {field: counts[field] for field in _OUTPUT_DETAILS if 0 < counts.get(field, 0) <= output_tokens}
    for kind, cached_kind in reported_names.CACHED_KINDS.items():
        count, least = counts.get(kind, 0), max(counts.get(kind, 0) - fresh_tokens, 0)
        of_cached = counts.get(cached_kind, 0)
        if not least <= of_cached <= min(cached, count):
            of_cached = least  # without a report that can be true, the cached tokens are text as far as they can be
        if count > 0 and of_cached <= cached:
            details |= {kind: count} | ({cached_kind: of_cached} if of_cached else {})
    return details


def _tier(report: Mapping[str, Any]) -> str | None:
    tier = report.get("service_tier")
    if isinstance(tier, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", tier):
        return tier.lower()
    return None


def _cost_of(report: Mapping[str, Any]) -> Decimal | None:
    """Return the cost that the service reports, in dollars."""
    if not _is_in_dollars(report):
        return None
    details = report.get("cost_details")
    upstream = _dollars(details.get("upstream_inference_cost")) if isinstance(details, dict) else None
    cost = _first_cost(report)
    if cost is None and isinstance(details, dict):
        cost = _first_cost(details)
    if upstream is not None and report.get("is_byok", not cost):
        return (cost or Decimal(0)) + upstream
    return None if report.get("is_byok") is True else cost


def _is_in_dollars(amounts: Mapping[str, Any]) -> bool:
    return amounts.get("currency") in (None, "USD", "usd", "")


def _first_cost(report: Mapping[str, Any]) -> Decimal | None:
    for name in ("cost", "total_cost", "estimated_cost", "cost_usd", "cost_in_usd", "response_cost"):
        value = report.get(name)
        if isinstance(value, dict):
            value = value.get("total_cost", value.get("total")) if _is_in_dollars(value) else None
        if (cost := _dollars(value)) is not None:
            return cost
    ticks = _number(report.get("cost_in_usd_ticks"))
    return None if ticks is None else _dollars_of(ticks / _TICKS_PER_DOLLAR)


def _dollars(value: Any) -> Decimal | None:
    number = _number(value)
    return None if number is None else _dollars_of(Decimal(number))


def _dollars_of(amount: Decimal) -> Decimal | None:
    try:
        return money.to_usd(amount) if 0 <= amount <= money.MAX_MESSAGE_COST else None
    except InvalidOperation:
        return None
