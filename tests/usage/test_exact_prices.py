"""Prices to the last digit: no float enters, whatever the model, its time and its tokens."""

import decimal
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import genai_prices
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app import money
from services.usage.pricing import OwnPrice, Priced, PriceList
from tests.support.prices import JUNE, dollars

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
