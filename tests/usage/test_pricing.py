"""What an answer costs: by the list, by the operator's own prices, at its own time, and exactly."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import genai_prices
import httpx
import pytest
from sqlalchemy import select

from app.db.database import Database
from app.errors import ConfigurationError
from models import Message
from services.usage import pricing
from services.usage.pricing import UNKNOWN, OwnPrice, Priced, PriceList
from tests.support import accounts, commands, invariants, programs, records
from tests.support.accounts import SECRET_KEY
from tests.support.prices import JUNE, NOW, dollars

LONG = 200_000
MICROSECOND = timedelta(microseconds=1)
OWN = """
[[price]]
model = "house"
input = 0.1
output = 0.30000000000000004
cached_input = 0.07

[[price]]
model = "house"
from = 2025-01-01
input = 2
output = 3

[[price]]
model = "gpt-4o-mini"
from = 2025-01-01T00:00:00+02:00
input = 1
output = 1

[[price]]
model = "gpt-4o"
provider = "openai"
input = 7
output = 7
"""


COUNTS = [(1, 0, 1), (1_000, 0, 500), (1_000, 250, 500), (1_000, 1_000, 0), (LONG, 1, 3), (0, 0, 7), (0, 0, 0)]
LONG_COUNTS = [(LONG + 1, 0, 3), (LONG + 1, 7, 3), (2**31 - 1, 2**31 - 1, 2**31 - 1)]
PRICES = {
    # https://openai.com/api/pricing, https://ai.google.dev/gemini-api/docs/pricing, https://claude.com/pricing
    "gpt-4o-mini": [("0.15", "0.075", "0.6")] * 2,
    "gpt-4": [("30", "30", "60")] * 2,
    "gpt-5": [("1.25", "0.125", "10")] * 2,
    "gemini-2.5-pro": [("1.25", "0.125", "10"), ("2.5", "0.25", "15")],
    "claude-sonnet-4-5": [("3", "0.3", "15"), ("6", "0.6", "22.5")],
}


@pytest.mark.parametrize("model", PRICES)
def test_a_known_model_costs_its_list_price_cached_and_long(model: str) -> None:
    usual, long = PRICES[model]
    for price, counts in ((usual, COUNTS), (long, LONG_COUNTS)):
        for read, cached, written in counts:
            found = PriceList().price(Priced(model, JUNE, read, written, cached))
            assert found.cost == dollars(price, (read, cached, written))
            assert found.source is not None
            assert found.source.startswith(f"genai-prices {genai_prices.__version__} ")
            assert found.source.endswith(f"/{model}")


@pytest.mark.parametrize(
    ("model", "changes", "before", "after", "counts"),
    [
        ("o3", "2025-06-10T00:00:00Z", ("10", "0.5", "40"), ("2", "0.5", "8"), (1_000, 10, 500)),
        ("claude-sonnet-4-6", "2026-03-13T00:00:00Z", ("6", "0.6", "22.5"), ("3", "0.3", "15"), (LONG + 1, 10, 500)),
        ("deepseek-chat", "2025-03-01T00:30:00Z", ("0.135", "0.035", "0.55"), ("0.27", "0.07", "1.1"), (1_000, 10, 5)),
    ],
)
def test_a_message_costs_what_the_model_cost_at_its_own_time(
    model: str, changes: str, before: tuple[str, str, str], after: tuple[str, str, str], counts: tuple[int, int, int]
) -> None:
    instant = datetime.fromisoformat(changes)
    read, cached, written = counts
    for at, price in ((instant - MICROSECOND, before), (instant, after)):
        assert PriceList().price(Priced(model, at, read, written, cached)).cost == dollars(price, counts)


@pytest.mark.parametrize(
    "model", ["no such model", "", "/", "openai/", "/gpt-4o", "openai/nothing", "a/b/c", "\x00", "💸"]
)
@pytest.mark.parametrize("api_url", [None, "https://api.openai.com/v1", "http://localhost:8080/v1", "nonsense"])
def test_a_model_that_nobody_knows_has_no_price(model: str, api_url: str | None) -> None:
    assert PriceList().price(Priced(model, JUNE, 1_000, 500, 10, api_url)) == UNKNOWN


@pytest.mark.parametrize("model", ["groq/whisper-large-v3", "x-ai/grok-voice-latest"])
def test_a_model_that_is_not_sold_by_tokens_has_no_known_price(model: str) -> None:
    assert PriceList().price(Priced(model, JUNE, 1_000, 500)) == UNKNOWN


def test_a_model_is_known_with_and_without_its_provider_prefix() -> None:
    names = ("gpt-4o-mini", "openai/gpt-4o-mini", "GPT-4o-mini")
    assert {PriceList().price(Priced(name, JUNE, 1_000, 500)).cost for name in names} == {Decimal("0.00045")}


def test_the_address_tells_which_of_several_sellers_is_meant() -> None:
    priced = Priced("deepseek-v4-flash", datetime(2026, 11, 1, tzinfo=UTC), 10**6, 0)
    sellers = {"https://api.deepseek.com/v1": "0.15", "https://api.quicksilverpro.io/v1": "0.06"}
    for url, cost in sellers.items():
        assert PriceList().price(priced._replace(api_url=url)).cost == Decimal(cost)


@pytest.fixture
def prices(tmp_path: Path) -> PriceList:
    """The operator's own."""
    path = tmp_path / "prices.toml"
    path.write_text(OWN)
    return pricing.load(path)


def test_own_prices_keep_every_digit(prices: PriceList) -> None:
    def cost(read: int, cached: int, written: int) -> Decimal | None:
        return prices.price(Priced("house", JUNE, read, written, cached)).cost

    assert cost(10**6, 0, 0) == Decimal("0.1")
    assert cost(10**6, 10**6, 0) == Decimal("0.07")
    assert cost(0, 0, 2 * 10**9) == Decimal("600.0000000000000800").quantize(Decimal("1e-10"))
    assert [price.output for price in prices.own if price.since < JUNE and price.model == "house"] == [
        Decimal("0.30000000000000004")
    ]


def test_own_prices_hold_from_their_instant_on(prices: PriceList) -> None:
    new_year = datetime(2025, 1, 1, tzinfo=UTC)
    million = 10**6

    def price(model: str, at: datetime) -> pricing.Price:
        return prices.price(Priced(model, at, million, 0, million))

    assert price("house", new_year - MICROSECOND) == (Decimal("0.07"), "prices.toml house")
    assert price("house", new_year) == (Decimal(2), "prices.toml house"), (
        "with no price of its own cached input is input"
    )
    there = new_year - timedelta(hours=2)
    assert price("gpt-4o-mini", there) == (Decimal(1), "prices.toml gpt-4o-mini")
    assert price("gpt-4o-mini", there - MICROSECOND).cost == Decimal("0.075"), "before that the list says"


def test_an_own_price_of_a_provider_holds_for_that_provider_alone(prices: PriceList) -> None:
    def cost(model: str, api_url: str | None = None) -> Decimal | None:
        return prices.price(Priced(model, JUNE, 10**6, 0, api_url=api_url)).cost

    assert cost("openai/gpt-4o") == Decimal(7)
    assert cost("gpt-4o", "https://api.openai.com/v1") == Decimal(7)
    assert cost("gpt-4o") == Decimal("2.5")
    assert cost("gpt-4o", "https://my.openai.azure.com/openai/v1") == Decimal("2.5")
    assert cost("azure/gpt-4o") == Decimal("2.5")


def test_without_a_file_or_with_an_empty_one_there_are_no_own_prices(tmp_path: Path) -> None:
    assert pricing.load(tmp_path / "prices.toml") == PriceList()
    (tmp_path / "prices.toml").write_text("")
    assert list(pricing.load(tmp_path / "prices.toml").own) == []


ONE = {"model": '"m"', "input": "1", "output": "1"}
WRONG = {
    "not TOML": "price = [",
    "not a table": "price = 3",
    "a table instead of a list": '[price]\nmodel = "m"\ninput = 1\noutput = 1',
    "something else": "prices = []",
    "not text": "\udcff",
    **{
        f"{name} = {value}": "[[price]]\n" + "\n".join(f"{n} = {v}" for n, v in (ONE | {name: value}).items())
        for name, values in {
            "model": ['""', "3"],
            "input": ["-1", "-0.0000000001", "nan", "inf", "true", '"cheap"', "1000001", "1e400", "[1]", "2024-01-01"],
            "cached_input": ["-1", "nan", "false"],
            "from": ['"soon"', "07:32:00", "[]", "2024-02-30"],
            "provider": ["1"],
            "inputs": ["1"],
        }.items()
        for value in values
    },
    **{
        f"no {name}": "[[price]]\n" + "\n".join(f"{n} = {v}" for n, v in ONE.items() if n != name)
        for name in ("model", "input", "output")
    },
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_wrong_price_is_refused_in_one_line_that_names_the_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError) as refused:
        pricing.load(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert len(str(refused.value).splitlines()) == 1


def test_the_server_does_not_start_with_wrong_prices(tmp_path: Path) -> None:
    product = programs.install(tmp_path / "product")
    (product / "prices.toml").write_text('[[price]]\nmodel = "m"\ninput = -1\noutput = 1\n')
    settings = {"SECRET_KEY": SECRET_KEY, "DATABASE_URL": f"sqlite:///{tmp_path / 'app.db'}"}
    ended = programs.run([product / "main.py"], tmp_path, {**settings, "PORT": str(commands.free_port())})
    assert (ended.code, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1
    assert "prices.toml" in ended.err
    assert "input" in ended.err


@pytest.fixture
def app_settings(database_url: str, tmp_path: Path) -> dict[str, Any]:
    """With prices of the operator's own."""
    (tmp_path / "prices.toml").write_text(OWN)
    return {"database_url": database_url, "secret_key": SECRET_KEY, "prices_file": tmp_path / "prices.toml"}


async def test_a_message_keeps_its_cost_and_what_priced_it(client: httpx.AsyncClient, database: Database) -> None:
    ayu = await accounts.add(database, "ayu")
    service = await accounts.add(database, "service", role="service")
    figures = {"input_tokens": 10**6, "output_tokens": 0, "created_at": JUNE.isoformat()}
    models = ("house", "gpt-4", "no such model")
    batch = [records.record(ayu, model=model, **figures) for model in models]
    await records.store(client, service, [*batch, records.record(ayu, model="house", cost="0.5", **figures)])
    async with database.reads() as session:
        rows = (await session.execute(select(Message.cost, Message.price_source).order_by(Message.id))).all()
    assert [row.cost for row in rows] == [Decimal("0.1"), Decimal(30), None, Decimal("0.5")]
    sources = ["prices.toml house", f"genai-prices {genai_prices.__version__} openai/gpt-4", None, "caller"]
    assert [row.price_source for row in rows] == sources
    [month] = (await invariants.check(database)).values()
    assert month.total_cost == Fraction("30.6")


def test_own_machines_cost_what_the_operator_says(prices: PriceList) -> None:
    priced = Priced("house", JUNE, 10**6, 0, api_url="http://ollama:11434/v1")
    assert prices.price(priced) == (Decimal("0.1"), "prices.toml house")


@pytest.mark.parametrize(
    ("answered", "requested", "cost"),
    [
        ("house", "house", "0.1"),
        ("llama-3-8b-8192", "house", "0.1"),
        ("house", "auto", "0.1"),
        ("llama-3-8b-8192", "proxy/house", "0.1"),
        ("house:thinking", None, "0.1"),
        ("house-2024-06-01", None, "0.1"),
        ("us.anthropic.house-20240601-v1:0", "x", "0.1"),
        ("gpt-4o-mini", "gpt-4", "0.15"),
        ("an unknown name", "gpt-4", None),
    ],
)
def test_an_own_price_holds_for_the_requested_or_answered_name(
    prices: PriceList, answered: str, requested: str | None, cost: str | None
) -> None:
    found = prices.price(Priced(answered, JUNE, 10**6, 0, requested=requested)).cost
    assert found == (None if cost is None else Decimal(cost))


def test_charges_come_after_own_prices_and_before_the_list(prices: PriceList) -> None:
    charged = Priced(
        "gpt-4", JUNE, 10**6, 0, api_url="https://openrouter.ai/api/v1", reported_cost=Decimal("0.1234567890")
    )
    assert prices.price(charged) == (Decimal("0.123456789"), "provider openrouter.ai")
    assert prices.price(charged._replace(model="nobody/knows")).cost == Decimal("0.123456789")
    assert prices.price(charged._replace(api_url=None)).source == "provider"
    assert prices.price(charged._replace(model="house")) == (Decimal("0.1"), "prices.toml house")
    distrustful = PriceList(prices.own, trust_provider_cost=False)
    assert distrustful.price(charged).cost == Decimal(30)
    assert distrustful.price(charged._replace(model="nobody/knows")) == UNKNOWN


def test_the_setting_says_whether_a_services_cost_is_trusted(tmp_path: Path) -> None:
    assert pricing.load(tmp_path / "prices.toml").trust_provider_cost
    (tmp_path / "prices.toml").write_text(OWN)
    for path in (tmp_path / "prices.toml", tmp_path / "none.toml"):
        assert not pricing.load(path, trust_provider_cost=False).trust_provider_cost


def test_cache_writes_audio_and_tiers_have_their_own_prices() -> None:
    def cost(model: str, read: int, output: int, cached: int = 0, **details: Any) -> Decimal | None:
        return PriceList().price(Priced(model, NOW, read, output, cached, details=details)).cost

    assert cost("claude-opus-4-5", 98805, 5120, 66360, cache_write_tokens=32435) == Decimal("0.36394875")
    assert cost("claude-opus-4-5", 1000, 0, 0, cache_write_tokens=1000) == Decimal("0.00625")
    assert cost("claude-opus-4-5", 1000, 0, 0, cache_write_tokens=1000, cache_write_1h_tokens=1000) == Decimal("0.01")
    assert cost("gpt-4o", 1000, 0, 0, cache_write_tokens=1000) == Decimal("0.0025"), "written for nothing"
    assert cost("gemini-2.5-flash", 1000, 0, 0, input_audio_tokens=500) == Decimal("0.00065")
    assert cost("gemini-2.5-flash", 1000, 0, 600, input_audio_tokens=300) == Decimal("0.000348"), "cached is text"
    cached_audio = {"input_audio_tokens": 600, "cache_audio_read_tokens": 300, "output_audio_tokens": 400}
    assert cost("gpt-realtime", 1000, 500, 500, **cached_audio) == Decimal("0.0378")
    assert cost("gpt-audio", 1000, 500, 500, **cached_audio) == Decimal("0.0468"), "cached for nothing"
    assert cost("perplexity/sonar-deep-research", 0, 1000, 0, output_reasoning_tokens=400) == Decimal("0.006")
    assert cost("gpt-5-mini", 1000, 100, service_tier="flex") == Decimal("0.000225")
    assert cost("gpt-5-mini", 1000, 100, 500, service_tier="priority") == Decimal("0.0006075")
    for tier in ("default", "auto", "standard", "scale", "no such tier"):
        assert cost("gpt-5-mini", 1000, 100, service_tier=tier) == Decimal("0.00045"), tier
    source = PriceList().price(Priced("gpt-5-mini", NOW, 1, 1, details={"service_tier": "flex"})).source
    assert source == f"genai-prices {genai_prices.__version__} openai/gpt-5-mini flex"
    earlier = PriceList().price(Priced("gpt-5-mini", NOW.replace(month=9), 1, 1, details={"service_tier": "flex"}))
    assert earlier.source == source.removesuffix(" flex")


def test_an_own_price_may_have_one_for_cache_writes() -> None:
    own = OwnPrice(model="m", input=Decimal(2), output=Decimal(3), cache_write=Decimal("2.5"))
    priced = Priced("m", JUNE, 10**6, 0, 200_000, details={"cache_write_tokens": 400_000})
    assert PriceList([own]).price(priced).cost == Decimal("2.2")
