"""Price a model's answer at the time of the answer.

The operator's own price comes first, then the charge that the service reports, then the list of `genai-prices`. For a
service at a local address, the list applies only to models that only vendors serve: the service is a gateway then.
"""

import contextlib
import functools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal, localcontext
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import genai_prices
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from app import money
from app.errors import ConfigurationError
from services.usage import model_names, service_addresses
from services.usage.model_names import Spelling
from services.usage.reported_names import CACHED_KINDS
from services.usage.reported_usage import NO_DETAILS, Details

_MILLION = Decimal(1_000_000)
_EXACT_DIGITS = 100
_KEPT_MODELS = 4096


class Price(NamedTuple):
    """A cost in dollars and its source; both None if unknown."""

    cost: Decimal | None
    source: str | None


UNKNOWN = Price(None, None)


class Priced(NamedTuple):
    """An answer to price.

    `model` is the name in the answer, with or without the provider before a slash (`openai/gpt-4o`). `requested` is the
    name in the request. `at` is the message's own time, since prices change. Cached input tokens are part of the input
    tokens. `api_url` is the URL of the service, which distinguishes providers that sell the same model. `details` are
    further counts of these tokens. `reported_cost` is the charge that the service reports, in dollars.
    """

    model: str
    at: datetime
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    api_url: str | None = None
    requested: str | None = None
    details: Details = NO_DETAILS
    reported_cost: Decimal | None = None


def _exact(value: Any) -> Any:
    if isinstance(value, bool | float):
        raise ValueError("it must be a decimal number")
    return value


def _instant(value: Any) -> Any:
    if type(value) is date:
        return datetime.combine(value, time(), UTC)
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value


UsdPerMillion = Annotated[
    Decimal, BeforeValidator(_exact), Field(ge=0, le=1_000_000, decimal_places=40, allow_inf_nan=False)
]


class OwnPrice(BaseModel):
    """One of the operator's prices, in dollars per million tokens.

    The price applies from the instant `from`, or always if `from` is absent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    model: Annotated[str, Field(min_length=1)]
    provider: str | None = None
    since: Annotated[datetime, BeforeValidator(_instant), Field(alias="from")] = datetime.min.replace(tzinfo=UTC)
    input: UsdPerMillion
    output: UsdPerMillion
    cached_input: UsdPerMillion | None = None
    cache_write: UsdPerMillion | None = None

    def price(self, priced: Priced) -> Price:
        """Return the price of an answer at these rates."""
        cached = self.input if self.cached_input is None else self.cached_input
        write = self.input if self.cache_write is None else self.cache_write
        written = int(priced.details.get("cache_write_tokens", 0))
        fresh = priced.input_tokens - priced.cached_input_tokens - written
        with localcontext(prec=_EXACT_DIGITS):
            dollars = self.input * fresh + cached * priced.cached_input_tokens + self.output * priced.output_tokens
            dollars += write * written
            return Price(money.to_usd(dollars / _MILLION), f"prices.toml {self.model}")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    price: list[OwnPrice] = []


@dataclass(frozen=True)
class PriceList:
    """All known prices: the operator's own, newest first, and the list's."""

    own: Sequence[OwnPrice] = ()
    trust_provider_cost: bool = True
    """Whether the charge that the service reports applies if the operator has no price."""

    def price(self, priced: Priced) -> Price:
        """Return the price of one answer, or `UNKNOWN`.

        The cost is rounded half to even at 1e-10 dollars.
        """
        if own := self._own_price(priced):
            return own.price(priced)
        if self.trust_provider_cost and priced.reported_cost is not None:
            return Price(money.to_usd(priced.reported_cost), f"provider {_host(priced.api_url)}".strip())
        if service_addresses.is_local(priced.api_url) and not model_names.is_closed(priced.model):
            return UNKNOWN  # the operator's own model; a model that only vendors serve would come through a gateway
        if model_names.is_free(priced.model):
            return Price(money.ZERO, f"free {priced.model}")
        return _list_price(priced)

    def _own_price(self, priced: Priced) -> OwnPrice | None:
        if not self.own:
            return None
        seller = _provider_at(priced.api_url)
        for name, providers in _names_of(priced):
            for own in self.own:
                is_sold = own.provider is None or own.provider in providers or own.provider == seller
                if own.model == name and own.since <= priced.at and is_sold:
                    return own
        return None


@functools.lru_cache(_KEPT_MODELS)
def context_window(model: str, api_url: str | None) -> int | None:
    """Return a model's context in tokens, answer included; None if unknown."""
    for name, provider_id in _ways_to_look_up(Priced(model, datetime.now(UTC), 0, 0, api_url=api_url)):
        found = _find(name, provider_id)
        if found is not None and found.model.context_window:
            return found.model.context_window
    return None


def load(path: Path, *, trust_provider_cost: bool = True) -> PriceList:
    """Read the operator's prices; a missing file has none.

    Args:
        path: `prices.toml`.
        trust_provider_cost: `TRUST_PROVIDER_COST`.

    Raises:
        ConfigurationError: the file cannot be read, is not TOML, or holds something other than prices.
    """
    get_snapshot()  # read the list now, so that the first answer does not wait
    try:
        text = path.read_text(encoding="utf-8")
        own = _File.model_validate(tomllib.loads(text, parse_float=Decimal)).price
    except FileNotFoundError:
        return PriceList(trust_provider_cost=trust_provider_cost)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ConfigurationError(f"{path}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from None
    except (OSError, ValueError, ArithmeticError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
    return PriceList(sorted(own, key=lambda price: price.since, reverse=True), trust_provider_cost)


def _names_of(priced: Priced) -> Iterator[Spelling]:
    """Yield the answered and the requested name, then their other spellings."""
    both = [model_names.spellings(name) for name in (priced.model, priced.requested) if name]
    for names in both:
        yield from names[:1]
    for names in both:
        yield from names[1:]


def _host(api_url: str | None) -> str:
    return urlsplit(api_url or "").hostname or ""


def _provider_at(api_url: str | None) -> str | None:
    if api_url is None:
        return None
    try:
        return get_snapshot().find_provider(None, None, api_url).id
    except LookupError:
        return None


def _list_price(priced: Priced) -> Price:
    for model, provider_id in _ways_to_look_up(priced):
        found = _find(model, provider_id)
        if found is None:
            continue
        rates = found.model.get_prices(priced.at)
        if (priced.input_tokens and rates.input_mtok is None) or (priced.output_tokens and rates.output_mtok is None):
            continue  # sold by the minute, for example: no price for tokens
        context = _context(found, priced)
        source = " ".join([found.source, *context.values()])
        return Price(money.to_usd(_cost(found, rates, priced, context)), source)
    return UNKNOWN


class _Found(NamedTuple):
    provider: Provider
    model: ModelInfo
    source: str


@functools.lru_cache(_KEPT_MODELS)
def _find(model: str, provider_id: str | None) -> _Found | None:
    """Return a model of the list; None if it is absent.

    The list does not change while the process runs.
    """
    try:
        provider, info = get_snapshot().find_provider_model(model, None, provider_id, None)
    except LookupError:
        return None
    return _Found(provider, info, f"genai-prices {genai_prices.__version__} {provider.id}/{info.id}")


def _context(found: _Found, priced: Priced) -> dict[str, str]:
    """Return the service tier if the tier changes the price.

    The seller must have a separate price for the model in this tier at that time.
    """
    context = {"service_tier": str(priced.details.get("service_tier", ""))}
    is_its_own = any(model is found.model for model in found.provider.models)
    is_priced = any(
        variant.when == context
        and vars(variant.prices)
        and (variant.constraint is None or variant.constraint.active(priced.at))
        for variant in found.model.price_variants or ()
    )
    return context if is_its_own and is_priced else {}


def _cost(found: _Found, prices: ModelPrice, priced: Priced, context: Mapping[str, str]) -> Decimal:
    details = _priced_details(prices, priced.details)
    rates = None if details or context else _rates(found, prices, priced.at)
    if rates is not None:
        fresh = priced.input_tokens - priced.cached_input_tokens
        tokens = rates.fresh * fresh + rates.cached * priced.cached_input_tokens + rates.output * priced.output_tokens
        return rates.fixed + tokens
    writes = {name: count for name, count in details.items() if name.startswith("cache_write")}
    for known in (details, writes):
        with contextlib.suppress(ValueError):  # counts of several kinds that contradict each other
            return _calculated(found, priced.at, *priced[2:5], known, context)
    return _calculated(found, priced.at, *priced[2:5], context=context)


def _priced_details(prices: ModelPrice, details: Details) -> dict[str, int]:
    """Return the counts that have a separate price.

    Cached tokens are text, where no count says otherwise.
    """
    counts = {
        name: count
        for name, count in details.items()
        if isinstance(count, int) and vars(prices).get(name.replace("_tokens", "_mtok")) is not None
    }
    return {CACHED_KINDS[name]: 0 for name in counts if name in CACHED_KINDS} | counts


def _calculated(
    found: _Found,
    at: datetime,
    input_tokens: int,
    output_tokens: int,
    cached: int,
    details: Mapping[str, int] = MappingProxyType({}),
    context: Mapping[str, str] = MappingProxyType({}),
) -> Decimal:
    """Return the library's price, in dollars.

    The library analyses prices and usage again for each answer, which takes ten times as long as the calculation from
    `_rates`.
    """
    usage = genai_prices.Usage(
        input_tokens=input_tokens, output_tokens=output_tokens, cache_read_tokens=cached, **details
    )
    model, provider = found.model, found.provider
    return model.calc_price(usage, provider, genai_request_timestamp=at, price_context=context).total_price


class _Rates(NamedTuple):
    """Dollars for an answer, and for one token of each kind.

    The kinds are fresh input, cached input and output.
    """

    fixed: Decimal
    fresh: Decimal
    cached: Decimal
    output: Decimal


_known_rates: dict[int, tuple[ModelPrice, _Rates | None]] = {}


def _rates(found: _Found, prices: ModelPrice, at: datetime) -> _Rates | None:
    """Return the library's rates for one token of each kind.

    Return None if the price of a token depends on the number of tokens.
    """
    known = _known_rates.get(id(prices))
    if known is None:  # keep the prices too, so that no other object can reuse their id
        known = _known_rates[id(prices)] = prices, None if _has_tiers(prices) else _asked(found, at)
    return known[1]


def _has_tiers(prices: ModelPrice) -> bool:
    return any(isinstance(price, TieredPrices) for price in vars(prices).values())


def _asked(found: _Found, at: datetime) -> _Rates:
    fixed = _calculated(found, at, 0, 0, 0)
    one_each = (_calculated(found, at, *counts) for counts in ((1, 0, 0), (1, 0, 1), (0, 1, 0)))
    return _Rates(fixed, *(dollars - fixed for dollars in one_each))


def _ways_to_look_up(priced: Priced) -> Iterator[tuple[str, str | None]]:
    seller = _provider_at(priced.api_url)
    for name, providers in model_names.spellings(priced.model):
        if seller:
            yield name, seller
        for provider in providers:
            yield name, provider
        yield name, None
