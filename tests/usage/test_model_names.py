"""A model has its price by every spelling of its name, and no other model's."""

from collections.abc import Mapping
from decimal import Decimal

import pytest

from services.usage.pricing import UNKNOWN, Priced, PriceList
from tests.support.prices import NOW

SPELLED: Mapping[str, tuple[str, ...]] = {
    "gpt-4o": ("openai/gpt-4o", "gpt-4o-2024-08-06", "gpt-4o-20240806", "azure/gpt-4o", "openai/gpt-4o:online"),
    "gemini-2.5-flash": (
        "models/gemini-2.5-flash",
        "google/gemini-2.5-flash",
        "vertex_ai/gemini-2.5-flash",
        "publishers/google/models/gemini-2.5-flash",
        "projects/p/locations/l/publishers/google/models/gemini-2.5-flash",
    ),
    "claude-sonnet-4-5": (
        "anthropic/claude-sonnet-4-5",
        "claude-sonnet-4-5-20250929",
        "claude-sonnet-4-5@20250929",
        "vertex_ai/claude-sonnet-4-5@20250929",
        "anthropic/claude-sonnet-4-5:thinking",
        "proxy/anthropic/claude-sonnet-4-5-20250929",
        "global.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "bedrock/global.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "openrouter/anthropic/claude-sonnet-4.5",
        "claude-sonnet-4-5-latest",
    ),
    "groq/llama-3.1-8b-instant": ("groq/llama-3.1-8b-instant",),
}


@pytest.mark.parametrize("model", SPELLED)
def test_a_model_has_its_price_by_every_spelling_of_its_name(model: str) -> None:
    costs = {name: PriceList().price(Priced(name, NOW, 1_000, 500, 100)).cost for name in (model, *SPELLED[model])}
    assert None not in costs.values()
    assert len(set(costs.values())) == 1, costs


def test_a_region_of_bedrock_has_its_own_price() -> None:
    name = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
    profile = f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/{name}"
    for model in (name, f"bedrock/{name}", f"bedrock/converse/{name}", profile):
        found = PriceList().price(Priced(model, NOW, 10**6, 10**6))
        assert found.cost == Decimal("19.8"), model
        assert found.source is not None
        assert " aws/regional." in found.source


def test_a_path_of_fireworks_is_understood() -> None:
    name = "accounts/fireworks/models/llama-v3p1-8b-instruct"
    assert PriceList().price(Priced(name, NOW, 10**6, 10**6)).cost == Decimal("0.4")


@pytest.mark.parametrize("model", ["deepseek-v999", "gpt", "o", "claude", "us.anthropic.", "-2024-08-06", "models/"])
def test_taking_a_name_apart_does_not_make_it_another_models(model: str) -> None:
    assert PriceList().price(Priced(model, NOW, 1_000, 500)) == UNKNOWN


@pytest.mark.parametrize("api_url", [None, "https://openrouter.ai/api/v1", "https://models.example/v1"])
def test_a_model_that_is_named_free_costs_nothing(api_url: str | None) -> None:
    name = "meta-llama/llama-3.3-70b-instruct:free"
    assert PriceList().price(Priced(name, NOW, 1_000, 500, api_url=api_url)) == (Decimal(0), f"free {name}")
