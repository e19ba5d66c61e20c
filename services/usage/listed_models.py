"""List the models of the price list; price single tokens."""

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from genai_prices.data_snapshot import get_snapshot

from services.usage.pricing import Priced, PriceList

_OPENROUTER = "openrouter"
# Aliases of the newest model of a family, and prices of requests that are answered later.
_ALIAS, _BATCH = "~", ":batch"
# Tokens that are priced to learn the price of one: fewer than begin the first tier of any seller.
_TOKENS = 1_000


class ListedModel(NamedTuple):
    """A model of the price list, such as `anthropic/claude-sonnet-4`."""

    id: str
    name: str


class TokenPrices(NamedTuple):
    """Dollars for one token of a short prompt, where known."""

    input: Decimal | None
    output: Decimal | None
    cached_input: Decimal | None


def listed() -> Iterator[ListedModel]:
    """Yield the models that OpenRouter sells, with a vendor and a name."""
    provider = next(each for each in get_snapshot().providers if each.id == _OPENROUTER)
    vendors = {each.id: each.name for each in get_snapshot().providers}
    for model in provider.models:
        vendor, slash, _ = model.id.partition("/")
        is_sold = slash and model.name and not model.deprecated
        if is_sold and not model.id.startswith(_ALIAS) and not model.id.endswith(_BATCH):
            yield ListedModel(model.id, f"{vendors.get(vendor, vendor.title())}: {model.name}")


def token_prices(prices: PriceList, model: str, at: datetime, api_url: str | None) -> TokenPrices:
    """Return what a token of a model costs at an instant."""

    def each(input_tokens: int, output_tokens: int, cached: int) -> Decimal | None:
        cost = prices.price(Priced(model, at, input_tokens, output_tokens, cached, api_url)).cost
        return None if cost is None else cost / _TOKENS

    return TokenPrices(each(_TOKENS, 0, 0), each(0, _TOKENS, 0), each(_TOKENS, 0, _TOKENS))
