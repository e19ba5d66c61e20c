"""The models that a caller may choose from, with their prices."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import NamedTuple

from anyio import to_thread

from app import clock
from app.errors import NotFound
from services.chat import requested_models
from services.chat.upstream import Upstream
from services.usage import listed_models, pricing
from services.usage.listed_models import TokenPrices
from services.usage.pricing import Priced, PriceList


class OfferedModel(NamedTuple):
    """A model of the catalogue."""

    id: str
    """The value that a caller sends as `model_id`."""
    name: str
    """`Provider: Model`, if the list has a name; otherwise the id."""
    context_tokens: int | None
    prices: TokenPrices
    is_served: bool
    """Whether a chat request reaches this model; otherwise the default model answers."""
    sold_as: str
    """The name by which the model is priced."""


class Estimate(NamedTuple):
    """Dollars for a request; None if no price is known."""

    model: OfferedModel
    input: Decimal | None
    output: Decimal | None
    total: Decimal | None


class Catalogue:
    """The models of the settings, the operator's prices, and the price list."""

    def __init__(self, prices: PriceList, upstream: Upstream, default_model: str, names: Mapping[str, str]) -> None:
        self._prices = prices
        self._upstream = upstream
        self._names = names
        is_built_in = upstream.api_url is None
        self._default = upstream.model_for(default_model) if default_model or is_built_in else None
        self._is_openrouter = requested_models.is_openrouter(upstream.api_url)
        self._of_day: tuple[date, Mapping[str, OfferedModel]] | None = None
        self._lock = asyncio.Lock()

    async def models(self) -> Sequence[OfferedModel]:
        """Return all models with today's prices.

        Served models come first, then all others, each group by name.
        """
        return list((await self._today()).values())

    async def find(self, model_id: str) -> OfferedModel | None:
        """Return a model; None if there is no such model."""
        return (await self._today()).get(model_id)

    async def estimate(self, model_id: str, input_tokens: int, output_tokens: int) -> Estimate:
        """Return the cost of a request at the current prices.

        Raises:
            NotFound: there is no such model.
        """
        model = await self.find(model_id)
        if model is None:
            raise NotFound("There is no such model: GET /models lists all.")
        input_cost = self._cost(model, input_tokens, 0)
        total = self._cost(model, input_tokens, output_tokens)
        output_cost = None if total is None or input_cost is None else total - input_cost
        return Estimate(model, input_cost, output_cost, total)

    def default_for(self, category: str) -> str:
        """Return the model id of a category of the earlier backend."""
        if category in self._names:
            return category
        usual = requested_models.USUAL_MODELS[category]
        return usual if self._is_openrouter or self._default is None else self._default

    def _cost(self, model: OfferedModel, input_tokens: int, output_tokens: int) -> Decimal | None:
        counts = input_tokens, output_tokens
        return self._prices.price(
            Priced(model.sold_as, clock.now(), *counts, api_url=self._seller(model.is_served))
        ).cost

    def _seller(self, is_served: bool) -> str | None:
        return self._upstream.api_url if is_served else None

    async def _today(self) -> Mapping[str, OfferedModel]:
        today = clock.now().astimezone(UTC).date()
        async with self._lock:
            if self._of_day is None or self._of_day[0] != today:
                self._of_day = today, await to_thread.run_sync(self._priced, datetime.combine(today, time(12), UTC))
            return self._of_day[1]

    def _priced(self, at: datetime) -> Mapping[str, OfferedModel]:
        found: dict[str, OfferedModel] = {}
        for model_id, name, is_served in self._ids():
            if model_id in found:
                continue
            sold_as, seller = self._names.get(model_id, model_id) if is_served else model_id, self._seller(is_served)
            prices = listed_models.token_prices(self._prices, sold_as, at, seller)
            context = pricing.context_window(sold_as, seller)
            found[model_id] = OfferedModel(model_id, name or model_id, context, prices, is_served, sold_as)
        ordered = sorted(found.values(), key=lambda model: (not model.is_served, model.name.casefold(), model.id))
        return {model.id: model for model in ordered}

    def _ids(self) -> Iterator[tuple[str, str | None, bool]]:
        """Yield each id, its name, and whether the model is served.

        Where an id occurs more than once, the first occurrence counts.
        """
        named = {model.id: model.name for model in listed_models.listed()}
        if self._default is not None:
            yield self._default, named.get(self._default), True
        for name in self._names:
            yield name, named.get(name), True
        for own in self._prices.own:
            yield own.model, named.get(own.model), self._is_openrouter
        for model_id, name in named.items():
            yield model_id, name, self._is_openrouter
