"""The catalogue: models of the settings and of the price list, with their prices."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import clock
from services.chat.catalogue import Catalogue
from services.chat.openai_upstream import OpenAIUpstream, Timeouts
from services.chat.upstream import OfflineUpstream, Upstream
from services.usage import pricing
from services.usage.pricing import Priced, PriceList
from tests.support import problems
from tests.support.accounts import Caller

SONNET, GPT = "anthropic/claude-sonnet-4", "openai/gpt-4o"
OPENROUTER, LOCAL = "https://openrouter.ai/api/v1", "http://127.0.0.1:9/v1"
OWN = '[[price]]\nmodel = "own"\ninput = 1.5\noutput = 6\n'


def catalogue(url: str = "", default: str = "", prices: PriceList | None = None, **names: str) -> Catalogue:
    upstream: Upstream = OpenAIUpstream(url, "", default, Timeouts()) if url else OfflineUpstream()
    return Catalogue(prices or PriceList(), upstream, default, names)


@pytest.fixture(params=["sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """Models do not depend on the database."""
    return str(request.param)


async def test_a_gateway_of_many_vendors_serves_the_list() -> None:
    models = {model.id: model for model in await catalogue(OPENROUTER, GPT).models()}
    assert all(model.is_served for model in models.values())
    assert models[SONNET].name == "Anthropic: Claude Sonnet 4"
    assert models[SONNET].prices == (Decimal("0.000003"), Decimal("0.000015"), Decimal("0.0000003"))
    assert len(models) > 300


async def test_another_service_serves_what_the_settings_name(tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text(OWN)
    prices = pricing.load(tmp_path / "prices.toml")
    models = await catalogue(LOCAL, "own", prices, Fast="gpt-4o-mini").models()
    served = {model.id: model for model in models if model.is_served}
    assert served.keys() == {"own", "Fast"}
    assert [model.id for model in models[:2]] == ["Fast", "own"]
    assert served["own"].prices == (Decimal("0.0000015"), Decimal("0.000006"), Decimal("0.0000015"))
    assert served["Fast"].prices.input == Decimal("0.00000015"), "as the model that answers"
    assert SONNET in {model.id for model in models}


async def test_the_built_in_model_is_served_without_a_price() -> None:
    first, *others = await catalogue().models()
    assert (first.id, first.is_served, first.prices) == ("offline", True, (None, None, None))
    assert not any(model.is_served for model in others)


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
async def test_an_estimate_is_the_price_of_the_request(input_tokens: int, output_tokens: int) -> None:
    estimate = await catalogue(OPENROUTER, GPT).estimate(SONNET, input_tokens, output_tokens)
    priced = Priced(SONNET, clock.now(), input_tokens, output_tokens, api_url=OPENROUTER)
    assert estimate.total == PriceList().price(priced).cost
    assert estimate.input is not None
    assert estimate.output is not None
    assert estimate.input + estimate.output == estimate.total


async def test_prices_follow_the_day(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text(OWN + "\n" + OWN.replace("1.5", "3") + "from = 2027-01-02\n")
    offered = catalogue(LOCAL, "own", pricing.load(tmp_path / "prices.toml"))
    for day, expected in ((1, "0.0000015"), (2, "0.000003")):
        monkeypatch.setattr(clock, "now", lambda day=day: datetime(2027, 1, day, 23, tzinfo=UTC))
        model = await offered.find("own")
        assert model is not None
        assert model.prices.input == Decimal(expected)


async def test_models_are_listed_found_and_shown(client: httpx.AsyncClient, ayu: Caller) -> None:
    listed = (await client.get("/models", headers=ayu.headers)).json()
    assert listed["total_count"] == len(listed["models"])
    shown = (await client.get(f"/models/{SONNET}", headers=ayu.headers)).json()
    assert shown in listed["models"]
    assert (shown["prompt_price"], shown["completion_price"]) == (0.000003, 0.000015)
    problems.check(await client.get("/models/no/model", headers=ayu.headers), 404)


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ({"query": "SONNET"}, lambda model: "sonnet" in f"{model['id']}{model['name']}".lower()),
        ({"provider": "anthropic"}, lambda model: model["name"].startswith("Anthropic:")),
        ({"max_cost": "1", "min_cost": "0.5"}, lambda model: 0.5 <= model["prompt_price"] * 10**6 <= 1),
        ({"max_cost": "0.1", "min_cost": "0.1"}, lambda model: model["prompt_price"] == 0.0000001),
        ({"min_context_length": "200000"}, lambda model: model["context_length"] >= 200_000),
        ({"modality": "image"}, lambda model: False),
    ],
)
async def test_a_search_returns_all_that_match(
    client: httpx.AsyncClient, ayu: Caller, query: dict[str, str], holds: Any
) -> None:
    every = (await client.get("/models", headers=ayu.headers)).json()["models"]
    found: list[Any] = []
    while len(found) % 7 == 0:
        page = await client.get(
            "/models/search", params={**query, "limit": "7", "offset": str(len(found))}, headers=ayu.headers
        )
        body = page.json()
        found += body["models"]
        if not body["models"]:
            break
    assert body["total"] == len(found)
    assert [model["id"] for model in found] == [model["id"] for model in every if _holds(holds, model)]


def _holds(holds: Any, model: dict[str, Any]) -> bool:
    try:
        return bool(holds(model))
    except TypeError:  # an unknown price or context is within no bounds
        return False


@pytest.mark.parametrize(
    "query", [{"min_cost": "NaN"}, {"limit": "0"}, {"min_context_length": "1e9"}, {"offset": "-1"}]
)
async def test_a_search_that_means_nothing_is_refused(
    client: httpx.AsyncClient, ayu: Caller, query: dict[str, str]
) -> None:
    problems.check(await client.get("/models/search", params=query, headers=ayu.headers), 422)
