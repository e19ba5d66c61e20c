"""What a model's answer costs: list prices of `genai-prices`, offline, of the message's own time."""

from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

import genai_prices

from app import money


class Price(NamedTuple):
    """Dollars and what priced them; both None where nobody knows the price."""

    cost: Decimal | None
    source: str | None


UNKNOWN = Price(None, None)


def price(
    model: str,
    *,
    input_tokens: int,
    output_tokens: int,
    cached_input_tokens: int,
    at: datetime,
    api_url: str | None = None,
) -> Price:
    """The price of one answer, rounded half to even at 1e-10 dollars; `UNKNOWN` for a model that is not in the list.

    Args:
        model: the provider's name of the model, with or without the provider before a slash (`openai/gpt-4o`).
        input_tokens: all input, the cached part included.
        output_tokens: all output.
        cached_input_tokens: the part of the input that the provider read from its cache.
        at: when the message was made; prices change.
        api_url: where the model was called, to tell providers apart that sell the same model.
    """
    usage = genai_prices.Usage(
        input_tokens=input_tokens, output_tokens=output_tokens, cache_read_tokens=cached_input_tokens
    )
    for reference, where in _ways_to_look_up(model, api_url):
        try:
            found = genai_prices.calc_price(usage, reference, genai_request_timestamp=at, **where)
        except LookupError:
            continue
        source = f"genai-prices {genai_prices.__version__} {found.provider.id}/{found.model.id}"
        return Price(money.to_usd(found.total_price), source)
    return UNKNOWN


def _ways_to_look_up(model: str, api_url: str | None) -> list[tuple[str, dict[str, str]]]:
    ways: list[tuple[str, dict[str, str]]] = [(model, {})]
    if api_url:
        ways.insert(0, (model, {"provider_api_url": api_url}))
    provider, slash, name = model.partition("/")
    if slash and provider and name:
        ways.append((name, {"provider_id": provider}))
    return ways
