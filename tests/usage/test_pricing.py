"""What an answer costs: by the list, by the operator's own prices, at its own time, and exactly."""

import decimal
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import genai_prices
import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import select

from app import money
from app.db.database import Database
from app.errors import ConfigurationError
from models import Message
from services.usage import pricing
from services.usage.pricing import UNKNOWN, OwnPrice, Priced, PriceList
from tests.support import accounts, commands, invariants, programs, records
from tests.support.accounts import SECRET_KEY

JUNE = datetime(2024, 6, 15, 12, tzinfo=UTC)
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


def dollars(per_million: tuple[str, str, str], tokens: tuple[int, int, int]) -> Decimal:
    """Of prices and counts of input, cached input and output; the cached tokens are among the input's."""
    read, cached, written = tokens
    fresh, again, output = (Fraction(price) / 10**6 for price in per_million)
    exact = fresh * (read - cached) + again * cached + output * written
    return Decimal(round(exact * 10**10)).scaleb(-10)


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


NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
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


OWN_MACHINES = [
    "http://127.0.0.1:8000/v1", "http://localhost:1234/v1", "http://[::1]:8000/v1", "http://0.0.0.0:8000/v1",
    "http://10.1.2.3/v1", "http://172.17.0.1:8080/v1", "http://192.168.1.5:11434/v1", "http://100.64.1.2/v1",
    "http://[fd00::1]/v1", "http://169.254.1.1/v1", "http://ollama:11434/v1", "http://vllm:8000/v1", "http://llm/v1",
    "http://host.docker.internal:11434/v1", "http://gpu.local/v1", "http://gpu.lan:8000/v1", "http://LOCALHOST/v1",
    "http://vllm.models.svc.cluster.local:8000/v1", "http://vllm.models.svc/v1", "https://ollama.example.com/v1",
    "https://gpu.example.com:11434/v1", "http://user:secret@127.0.0.1/v1", "http://127.1:8000/v1", "http://gpu.corp/v1",
    "http://gpu.tail1234.ts.net/v1", "https://my-ollama.example.com/v1", "http://[::ffff:127.0.0.1]:8000/v1",
    "http://host.containers.internal/v1",
]  # fmt: skip
VENDORS = [
    "https://api.openai.com/v1", "https://ollama.com/v1", "https://models.example/v1", "https://8.8.8.8/v1",
    "http://10.0.0.1.nip.io/v1", "http://172.32.0.1/v1",
    "https://localhost.example.com/v1", "https://api.deepseek.com/v1", "nonsense", "", "http://[", "https://x:99999/v1",
]  # fmt: skip


@pytest.mark.parametrize("model", ["gpt-4o", "openai/gpt-4o-mini", "claude-sonnet-4-5", "grok-4-0709", "o3-mini"])
@pytest.mark.parametrize("api_url", OWN_MACHINES)
def test_what_only_a_vendor_serves_came_through_a_gateway(model: str, api_url: str) -> None:
    priced = Priced(model, NOW, 1_000, 500, api_url=api_url)
    assert PriceList().price(priced) == PriceList().price(priced._replace(api_url=None)) != UNKNOWN


SOLD = [
    *("groq/llama-3.3-70b-versatile", "together_ai/meta-llama/Llama-3.3-70B-Instruct-Turbo", "cerebras/llama3.1-8b"),
    *("accounts/fireworks/models/llama-v3p1-8b-instruct", "us.meta.llama3-3-70b-instruct-v1:0", "moonshot-v1-8k"),
]


@pytest.mark.parametrize("model", SOLD)
def test_what_names_its_seller_came_through_a_gateway(model: str) -> None:
    priced = Priced(model, NOW, 1_000, 500, api_url="http://127.0.0.1:4000/v1")
    assert PriceList().price(priced) == PriceList().price(priced._replace(api_url=None)) != UNKNOWN


def test_a_fine_tuned_model_has_not_its_bases_price() -> None:
    for model in ("ft:gpt-4o-2024-08-06:org::abc", "ft:gpt-4o-mini-2024-07-18:org:name:abc"):
        assert PriceList().price(Priced(model, NOW, 1_000, 500)) == UNKNOWN


@pytest.mark.parametrize("model", ["deepseek-r1:7b", "openai/gpt-oss-20b", "qwen3-32b", "llama-3.1-8b:free"])
@pytest.mark.parametrize("api_url", OWN_MACHINES)
def test_what_runs_on_ones_own_machine_has_no_list_price(model: str, api_url: str) -> None:
    assert PriceList().price(Priced(model, NOW, 1_000, 500, api_url=api_url)) == UNKNOWN


@pytest.mark.parametrize("api_url", VENDORS)
def test_what_runs_at_a_vendors_has_its_list_price(api_url: str) -> None:
    assert PriceList().price(Priced("gpt-4o", NOW, 1_000, 500, api_url=api_url)).cost is not None


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
    assert cost("gemini-2.5-flash", 1000, 0, 600, input_audio_tokens=300) is not None, "cached audio is not told apart"
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


TOKENS = st.integers(0, 2**31 - 1)
INSTANTS = st.datetimes(datetime(2015, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
LISTED = sorted(
    f"{provider.id}/{model.id}"
    for provider in genai_prices.data_snapshot.get_snapshot().providers
    for model in provider.models
)
OWN_PRICES = st.decimals(0, 1_000_000, allow_nan=False, places=20)


@given(st.sampled_from(LISTED) | st.text(), INSTANTS, st.tuples(TOKENS, TOKENS, TOKENS))
def test_a_listed_price_is_none_or_exact_to_a_ten_billionth(
    model: str, at: datetime, tokens: tuple[int, int, int]
) -> None:
    read, written, cached = tokens
    with decimal.localcontext() as context:
        context.traps[decimal.FloatOperation] = True
        found = PriceList().price(Priced(model, at, read, written, min(read, cached)))
    assert (found.cost is None) == (found.source is None)
    if found.cost is not None:
        assert type(found.cost) is Decimal
        assert found.cost >= 0
        assert (Fraction(found.cost) * 10**10).denominator == 1


@given(OWN_PRICES, OWN_PRICES, st.none() | OWN_PRICES, st.tuples(TOKENS, TOKENS, TOKENS))
@example(Decimal("100000.00005000000000000000000001"), Decimal(0), None, (1, 0, 0))
@example(Decimal("0.00005"), Decimal("0.00005"), None, (1, 0, 0))
@example(Decimal("0.00005"), Decimal("0.00005"), None, (2, 1, 1))
def test_an_own_price_is_exact_to_the_last_digit_and_no_float_enters(
    fresh: Decimal, output: Decimal, cached: Decimal | None, tokens: tuple[int, int, int]
) -> None:
    read, written, again = tokens[0], tokens[1], min(tokens[0], tokens[2])
    with decimal.localcontext() as context:
        context.traps[decimal.FloatOperation] = True
        own = OwnPrice(model="m", input=fresh, output=output, cached_input=cached)
        found = PriceList([own]).price(Priced("m", JUNE, read, written, again))
    per_million = (str(fresh), str(fresh if cached is None else cached), str(output))
    assert type(found.cost) is Decimal
    assert found.cost == dollars(per_million, (read, again, written))


@pytest.mark.long
def test_all_listed_prices_are_those_that_the_library_calculates() -> None:
    """Of each model of the list, at three times, with and without cached input, in short and long contexts."""
    counts = [(0, 0, 0), (1, 0, 0), (1200, 340, 0), (1200, 340, 1000), (300_001, 70_003, 299_999), (7, 11, 7)]
    compared = 0
    for provider in genai_prices.data_snapshot.get_snapshot().providers:
        for model in provider.models:
            for at in (datetime(2023, 1, 1, tzinfo=UTC), JUNE, datetime(2026, 11, 1, 3, 30, tzinfo=UTC)):
                for read, written, cached in counts:
                    price = PriceList().price(Priced(f"{provider.id}/{model.id}", at, read, written, cached))
                    usage = genai_prices.Usage(input_tokens=read, output_tokens=written, cache_read_tokens=cached)
                    if price.source is None or not price.source.endswith(f" {provider.id}/{model.id}"):
                        continue
                    found = model.calc_price(usage, provider, genai_request_timestamp=at)
                    assert price.cost == money.to_usd(found.total_price), (provider.id, model.id, at, read)
                    compared += 1
    assert compared > 20_000
