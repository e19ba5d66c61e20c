"""What services report as used, in all their shapes, and in none."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from models.messages import MAX_TOKENS
from services.usage.reported_usage import Reported, Reports


def read(*messages: Any, answered: bool = True) -> Reported:
    reports = Reports()
    for message in messages:
        reports.add(message)
    return reports.read(answered=answered)


def of(usage: Any, *, answered: bool = True) -> Reported:
    return read({"choices": [], "usage": usage}, answered=answered)


def openai(prompt: Any, completion: Any, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


def cached(tokens: Any, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens_details": {"cached_tokens": tokens, **more}}


def reasoned(tokens: Any) -> dict[str, Any]:
    return {"completion_tokens_details": {"reasoning_tokens": tokens}}


# From public bug reports: what was reported, and the input, output and cached tokens that are right.
SHAPES: Mapping[str, tuple[Mapping[str, Any], tuple[int, int, int]]] = {
    "xAI: reasoning beside": (
        openai(10120, 1499, total_tokens=14428, **cached(128), **reasoned(2809)),
        (10120, 4308, 128),
    ),
    "xAI: reasoning beside, no total": (openai(10120, 1499, **reasoned(2809)), (10120, 4308, 0)),
    "xAI: cached beside": (openai(348, 435, total_tokens=7583, **cached(6800)), (7148, 435, 6800)),
    "xAI: cached and reasoning beside": (
        openai(348, 435, total_tokens=7783, **cached(6800), **reasoned(200)),
        (7148, 635, 6800),
    ),
    "OpenAI: reasoning inside": (openai(100, 50, total_tokens=150, **reasoned(40)), (100, 50, 0)),
    "Gemini: thinking only in the total": (openai(20, 198, total_tokens=623), (20, 603, 0)),
    "Gemini's own names": (
        {"promptTokenCount": 20, "candidatesTokenCount": 198, "thoughtsTokenCount": 405, "totalTokenCount": 623},
        (20, 603, 0),
    ),
    "Gemini's own names, tools beside": (
        {"promptTokenCount": 20, "toolUsePromptTokenCount": 30, "candidatesTokenCount": 8, "totalTokenCount": 58},
        (50, 8, 0),
    ),
    "Anthropic through a proxy: written inside": (
        openai(5020, 40, total_tokens=5060, cache_creation_input_tokens=5000, **cached(0)),
        (5020, 40, 0),
    ),
    "Anthropic through a proxy: read inside": (
        openai(5020, 40, total_tokens=5060, cache_read_input_tokens=5000, cache_creation_input_tokens=0),
        (5020, 40, 5000),
    ),
    "Anthropic through a proxy: beside, with a total": (
        openai(20, 40, total_tokens=5060, cache_read_input_tokens=4000, cache_creation_input_tokens=1000),
        (5020, 40, 4000),
    ),
    "Anthropic: read beside, written inside": (
        openai(120, 40, total_tokens=4160, cache_read_input_tokens=4000, cache_creation_input_tokens=100),
        (4120, 40, 4000),
    ),
    "Anthropic: beside": (
        openai(50, 7, cache_read_input_tokens=100000, cache_creation_input_tokens=248),
        (100298, 7, 100000),
    ),
    "Anthropic: beside, though it would fit inside": (openai(50, 7, cache_read_input_tokens=30), (80, 7, 30)),
    "Anthropic's own names": (
        {"input_tokens": 3, "output_tokens": 9, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 20},
        (123, 9, 100),
    ),
    "Anthropic, written inside by both names": (
        openai(98805, 5120, cache_creation_input_tokens=32435, **cached(66360)),
        (98805, 5120, 66360),
    ),
    "Bedrock": (
        {"inputTokens": 5, "outputTokens": 7, "totalTokens": 112, "cacheReadInputTokens": 100},
        (105, 7, 100),
    ),
    "DeepSeek": (openai(1000, 9, prompt_cache_hit_tokens=896, prompt_cache_miss_tokens=104), (1000, 9, 896)),
    "Moonshot": (openai(1000, 9, cached_tokens=896, total_tokens=1009), (1000, 9, 896)),
    "LangChain's names": (
        {"input_tokens": 1000, "output_tokens": 9, "input_token_details": {"cache_read": 896}},
        (1000, 9, 896),
    ),
    "whole floats": (openai(19.0, 37.0, total_tokens=56.0), (19, 37, 0)),
    "texts": (openai("190", " 37 ", total_tokens="227", **cached("100.0")), (190, 37, 100)),
    "a total that is too small": (openai(190, 37, total_tokens=37), (190, 37, 0)),
    "only the input and the total": ({"prompt_tokens": 190, "total_tokens": 227}, (190, 37, 0)),
    "only the output and the total": ({"completion_tokens": 37, "total_tokens": 227}, (190, 37, 0)),
    "zero, and the total": (openai(0, 100, total_tokens=290), (190, 100, 0)),
}


@pytest.mark.parametrize(("report", "tokens"), SHAPES.values(), ids=SHAPES)
def test_a_report_means_what_its_total_or_its_vendor_says(
    report: Mapping[str, Any], tokens: tuple[int, int, int]
) -> None:
    assert of(report)[:3] == tokens


HALVES: Mapping[str, tuple[Any, tuple[int | None, int | None]]] = {
    "a broken output": (openai(19, 37.25, total_tokens=56.25), (19, None)),
    "a broken input": (openai("many", 37), (None, 37)),
    "a negative input": (openai(-1, 5, total_tokens=4), (None, 5)),
    "an absurd input": (openai(2**31, 5, total_tokens=2**31 + 5), (None, 5)),
    "an absurd output": (openai(10, 2**63), (10, None)),
    "a truth value": (openai(True, 5), (None, 5)),
    "not a number": (openai(float("nan"), 5), (None, 5)),
    "infinite": (openai(float("inf"), float("-inf")), (None, None)),
    "nested garbage": (openai({"a": [1]}, [5]), (None, None)),
    "no input beside an answer": (openai(0, 5), (None, 5)),
    "no output beside an answer": (openai(10, 0, total_tokens=10), (10, None)),
    "zeros beside an answer": (openai(0, 0, total_tokens=0), (None, None)),
    "more cached than the total allows": (openai(10, 5, total_tokens=15, **cached(11)), (None, 5)),
    "a total alone": ({"total_tokens": 15}, (None, None)),
    "nothing": ({}, (None, None)),
    "null": (None, (None, None)),
    "a text": ("ten", (None, None)),
    "a list": ([1, 2], (None, None)),
}


@pytest.mark.parametrize(("report", "halves"), HALVES.values(), ids=HALVES)
def test_a_bad_half_does_not_lose_the_good_one(report: Any, halves: tuple[int | None, int | None]) -> None:
    assert of(report)[:2] == halves


def test_zeros_are_believed_where_nothing_was_said() -> None:
    assert of(openai(0, 0, total_tokens=0), answered=False)[:2] == (0, 0)
    assert of(openai(10, 0), answered=False)[:2] == (10, 0)


PLACES: Mapping[str, Any] = {
    "at the top": openai(123, 119),
    "usage": {"usage": openai(123, 119)},
    "x_groq": {"x_groq": {"id": "req", "usage": openai(123, 119, total_tokens=242)}},
    "in the choice": {"choices": [{"index": 0, "usage": openai(123, 119)}]},
    "in the delta": {"choices": [{"index": 0, "delta": {"usage": openai(123, 119)}}]},
    "in the message": {"type": "message_start", "message": {"usage": {"input_tokens": 123, "output_tokens": 119}}},
    "usageMetadata": {"usageMetadata": {"promptTokenCount": 123, "candidatesTokenCount": 119}},
    "response.usage": {"response": {"usage": {"input_tokens": 123, "output_tokens": 119}}},
    "Ollama": {"done": True, "prompt_eval_count": 123, "eval_count": 119},
    "before a deeper one": {"usage": openai(123, 119), "agent": {"usage": openai(5000, 7000)}},
    "beside a session's": {"turn_usage": openai(123, 119), "session": {"usage": openai(5000, 7000)}},
    "above a day's": {"token_usage": openai(123, 119) | {"daily_usage": openai(5000, 7000)}},
    "beside limits": {"usage": openai(123, 119), "rate_limit_usage": {"total_tokens": 999999}},
}


@pytest.mark.parametrize("message", PLACES.values(), ids=PLACES)
def test_usage_is_found_wherever_a_service_puts_it(message: Any) -> None:
    assert read(message)[:2] == (123, 119)


def test_reports_are_cumulative_and_an_empty_one_changes_nothing() -> None:
    reports = [{"usage": openai(190, count, total_tokens=190 + count)} for count in (0, 1, 50, 100)]
    assert read(*reports)[:2] == (190, 100)
    assert read(*reports, {"usage": openai(0, 0, total_tokens=0)}, {"usage": None}, {"usage": {}})[:2] == (190, 100)
    assert read(*reports, *reports)[:2] == (190, 100)
    parts = {"usage": {"input_tokens": 190, "output_tokens": 1}}, {"usage": {"output_tokens": 100}}
    assert read(*parts)[:2] == (190, 100)


def test_what_is_known_beyond_the_counts_is_kept() -> None:
    report = openai(
        1000,
        500,
        total_tokens=1500,
        cache_creation={"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40},
        cache_creation_input_tokens=100,
        prompt_tokens_details={"cached_tokens": 200, "audio_tokens": 30, "image_tokens": 7, "text_tokens": 9},
        completion_tokens_details={"reasoning_tokens": 300, "audio_tokens": 20, "accepted_prediction_tokens": 3},
    )
    reported = read({"service_tier": "Flex", "usage": report})
    assert reported[:3] == (1000, 500, 200)
    assert reported.details == {
        "cache_write_tokens": 100,
        "cache_write_5m_tokens": 60,
        "cache_write_1h_tokens": 40,
        "output_reasoning_tokens": 300,
        "input_audio_tokens": 30,
        "input_image_tokens": 7,
        "output_audio_tokens": 20,
        "service_tier": "flex",
    }


def test_a_detail_that_cannot_be_part_of_the_counts_is_left_out() -> None:
    report = openai(10, 5, total_tokens=15, prompt_tokens_details={"audio_tokens": 11}, **reasoned(6))
    assert of(report | {"service_tier": {"a": 1}}) == Reported(10, 5, 0, {}, None)


# Audio of an input of 1000 tokens, what is cached of both, and which details say so.
AUDIO: Mapping[str, tuple[dict[str, Any], dict[str, int]]] = {
    "nothing cached": ({"audio_tokens": 600}, {"input_audio_tokens": 600}),
    "cached text": ({"audio_tokens": 600, "cached_tokens": 400}, {"input_audio_tokens": 600}),
    "cached audio": (
        {"audio_tokens": 1000, "cached_tokens": 128, "cached_tokens_details": {"audio_tokens": 128, "text_tokens": 0}},
        {"input_audio_tokens": 1000, "cache_audio_read_tokens": 128},
    ),
    "both cached": (
        {"audio_tokens": 600, "cached_tokens": 500, "cached_tokens_details": {"audio_tokens": 300, "text_tokens": 200}},
        {"input_audio_tokens": 600, "cache_audio_read_tokens": 300},
    ),
    "cached, so partly audio": (
        {"audio_tokens": 950, "cached_tokens": 100},
        {"input_audio_tokens": 950, "cache_audio_read_tokens": 50},
    ),
    "more cached audio than cached": (
        {"audio_tokens": 600, "cached_tokens": 100, "cached_tokens_details": {"audio_tokens": 200}},
        {"input_audio_tokens": 600},
    ),
    "more cached audio than audio": (
        {"audio_tokens": 50, "cached_tokens": 100, "cached_tokens_details": {"audio_tokens": 90}},
        {"input_audio_tokens": 50},
    ),
    "cached audio of no audio": ({"cached_tokens": 100, "cached_tokens_details": {"audio_tokens": 90}}, {}),
}


@pytest.mark.parametrize("name", AUDIO)
def test_cached_audio_is_told_from_cached_text(name: str) -> None:
    parts, details = AUDIO[name]
    for field in ("prompt_tokens_details", "input_token_details"):
        found = of(openai(1000, 500, total_tokens=1500, **{field: parts}))
        assert (found[:3], found.details) == ((1000, 500, parts.get("cached_tokens", 0)), details)


def on_own_key(cost: float, upstream: float | None, *, is_byok: bool = True) -> dict[str, Any]:
    """OpenRouter's fee, and what the vendor charges."""
    return {"cost": cost, "is_byok": is_byok, "cost_details": {"upstream_inference_cost": upstream}}


COSTS: Mapping[str, tuple[dict[str, Any], str | None]] = {
    "OpenRouter": ({"cost": 0.00123}, "0.00123"),
    "nothing": ({"cost": 0}, "0"),
    "with the vendor's own beside": (on_own_key(0.002, 0.002, is_byok=False), "0.002"),
    "on one's own key": (on_own_key(0.05, 0.95), "1"),
    "on one's own key, for no fee": (on_own_key(0, 0.0360795), "0.0360795"),
    "on one's own key, unsaid": (on_own_key(0, None), None),
    "details alone": ({"cost_details": {"upstream_inference_cost": 0.25}}, "0.25"),
    "details with a total": ({"cost_details": {"total_cost": "0.25"}}, "0.25"),
    "DeepInfra": ({"estimated_cost": 8.775e-06}, "0.000008775"),
    "xAI": ({"cost_in_usd_ticks": 37756000}, "0.0037756"),
    "Perplexity": ({"cost": {"input_tokens_cost": 0.001, "total_cost": 0.006}}, "0.006"),
    "a text": ({"cost": "0.00777"}, "0.00777"),
    "finer than can be stored": ({"cost": 1.23456789012345e-05}, "0.0000123457"),
    "in dollars": ({"cost": 0.5, "currency": "USD"}, "0.5"),
    "in another currency": ({"cost": 0.5, "currency": "CNY"}, None),
    "negative": ({"cost": -0.5}, None),
    "absurd": ({"cost": 1e12}, None),
    "no number": ({"cost": "cheap"}, None),
    "not a number": ({"cost": float("nan")}, None),
    "infinite": ({"cost": float("inf")}, None),
    "a truth value": ({"cost": True}, None),
    "none": ({}, None),
}


@pytest.mark.parametrize(("more", "cost"), COSTS.values(), ids=COSTS)
def test_what_the_service_charges_is_the_cost(more: dict[str, Any], cost: str | None) -> None:
    assert of(openai(10, 5) | more).cost == (None if cost is None else Decimal(cost))


def test_no_cost_beside_zeros_is_as_little_believed_as_the_zeros() -> None:
    assert of(openai(0, 0, total_tokens=0, cost=0)).cost is None
    assert read({"usage": openai(10, 5, cost=0.5)}, {"usage": openai(0, 0, cost=0)}).cost == Decimal("0.5")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.integers(0, 400)
NAMES = st.sampled_from(
    [
        "usage", "x_groq", "choices", "delta", "message", "prompt_tokens", "completion_tokens", "total_tokens",
        "input_tokens", "output_tokens", "prompt_tokens_details", "completion_tokens_details", "cached_tokens",
        "reasoning_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation", "audio_tokens",
        "ephemeral_5m_input_tokens", "cost", "cost_details", "is_byok", "upstream_inference_cost", "service_tier",
        "cost_in_usd_ticks", "cache_write_tokens",
    ]
) | st.text(max_size=5)  # fmt: skip
JUNK = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=8), max_leaves=30
)
MESSAGES = st.dictionaries(NAMES, JUNK, max_size=8)


@given(st.lists(MESSAGES, max_size=4), st.booleans())
def test_nothing_that_is_reported_raises_or_leaves_the_range(messages: list[Any], answered: bool) -> None:
    found = read(*messages, answered=answered)
    for count in (found.input_tokens, found.output_tokens):
        assert count is None or 0 <= count <= MAX_TOKENS
    assert 0 <= found.cached_input_tokens <= (found.input_tokens or 0)
    assert found.cost is None or found.cost == found.cost.quantize(Decimal("1e-10")) >= 0
    assert len(json.dumps(found.details)) < 1000
    fresh = (found.input_tokens or 0) - found.cached_input_tokens
    assert int(found.details.get("cache_write_tokens", 0)) <= fresh


@given(st.lists(MESSAGES, max_size=4), st.lists(MESSAGES, max_size=2), st.randoms())
def test_neither_order_nor_repetition_changes_what_was_reported(
    messages: list[Any], again: list[Any], random: Any
) -> None:
    for message in messages + again:
        message.pop("service_tier", None)
    twice = messages + again + messages
    random.shuffle(twice)
    first, second = read(*messages, *again), read(*twice)
    assert first[:3] == second[:3]
    assert first.cost == second.cost


COUNTS = st.integers(0, 10_000)
SOME = st.integers(1, 10_000)


@given(SOME, COUNTS, COUNTS, SOME, COUNTS, st.booleans(), st.booleans())
def test_a_total_proves_every_convention_of_a_true_report(
    fresh: int, read_again: int, written: int, text: int, thought: int, cache_is_inside: bool, thought_is_inside: bool
) -> None:
    everything = fresh + read_again + written
    output = text + thought
    report = {
        "prompt_tokens": everything if cache_is_inside else fresh,
        "completion_tokens": output if thought_is_inside else text,
        "total_tokens": everything + output,
        "prompt_tokens_details": {"cached_tokens": read_again, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }
    # Two readings of the same sum differ only where reasoning and a part of the cache are equally many.
    assume(cache_is_inside is thought_is_inside or thought not in (read_again, written, read_again + written))
    found = of(report)
    assert found[:3] == (everything, output, read_again)
    assert found.details.get("cache_write_tokens", 0) == written
    assert found.details.get("output_reasoning_tokens", 0) == thought
