"""Serve the models that a caller may choose from."""

from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from app.db.database import Session
from app.errors import NotFound
from app.security.tokens import Claims
from routers.http.dependencies import CallerDep, State, StateDep
from routers.http.problems import documented
from routers.http.requests import Digits, ExactRoute, StorableText
from services.accounts import users
from services.chat.catalogue import OfferedModel

router = APIRouter(prefix="/models", tags=["models"], route_class=ExactRoute)

_MILLION = 1_000_000

ModelId = Annotated[StorableText, Path(min_length=1, max_length=255, examples=["anthropic/claude-sonnet-4"])]


class ModelView(BaseModel):
    """A model.

    Prices are dollars for one token of a short prompt; null if they are unknown.
    """

    id: str
    name: str = Field(description="`Provider: Model`", examples=["Anthropic: Claude Sonnet 4"])
    description: str = ""
    context_length: int = Field(description="Tokens that the model takes, its answer included; 0 if unknown")
    modality: str = "text->text"
    input_modalities: list[str] = ["text"]
    output_modalities: list[str] = ["text"]
    prompt_price: float | None
    completion_price: float | None
    input_cache_read_price: float | None
    request_price: float = 0
    image_price: float = 0
    max_completion_tokens: int | None = None
    is_active: bool = Field(description="Whether a chat asks this model; otherwise the default model answers.")


class ModelList(BaseModel):
    """Models: first those that are asked, then by name."""

    models: list[ModelView]
    total_count: int


class FoundModels(ModelList):
    """A page of the models that were found."""

    total: int
    limit: int
    offset: int


class SearchQuery(BaseModel):
    """Which models."""

    query: Annotated[StorableText, Field(max_length=200)] = Field("", description="Part of the id or the name.")
    q: Annotated[StorableText, Field(max_length=200)] = Field("", description="The same as `query`.")
    provider: Annotated[StorableText, Field(max_length=200)] = Field("", description="The part of the name before `:`.")
    modality: Annotated[StorableText, Field(max_length=200)] = Field("", description="Comma-separated: one of them.")
    min_context_length: Annotated[int, Digits] | None = Field(None, ge=0, le=2**63 - 1)
    max_context_length: Annotated[int, Digits] | None = Field(None, ge=0, le=2**63 - 1)
    min_cost: float | None = Field(None, ge=0, allow_inf_nan=False, description="Dollars for a million input tokens.")
    max_cost: float | None = Field(None, ge=0, allow_inf_nan=False, description="Dollars for a million input tokens.")
    limit: Annotated[int, Digits] = Field(100, ge=1, le=1000)
    offset: Annotated[int, Digits] = Field(0, ge=0, le=2**31 - 1)

    def matches(self, model: ModelView) -> bool:
        """Return whether the query matches a model.

        A model without a known context or price matches no bounds.
        """
        words = [text.casefold() for text in (self.query, self.q)]
        named = f"{model.id}\n{model.name}".casefold()
        provider = model.name.partition(":")[0].casefold()
        wanted = self.modality.split(",") if self.modality else [model.modality]
        cost = None if model.prompt_price is None else float(Decimal(str(model.prompt_price)) * _MILLION)
        return (
            all(word in named for word in words)
            and self.provider.casefold() in provider
            and any(kind in (model.modality, *model.input_modalities) for kind in wanted)
            and _is_within(model.context_length or None, self.min_context_length, self.max_context_length)
            and _is_within(cost, self.min_cost, self.max_cost)
        )


def _is_within(value: float | None, least: float | None, most: float | None) -> bool:
    if value is None:
        return least is None and most is None
    return (least is None or least <= value) and (most is None or value <= most)


@router.get("", operation_id="list_models", responses=documented(401, 503))
async def get_models(caller: CallerDep, state: StateDep) -> ModelList:
    """List the models of the settings and of the price list."""
    models = await _models(caller, state)
    return ModelList(models=models, total_count=len(models))


@router.get("/search", operation_id="search_models", responses=documented(401, 422, 503))
async def get_found_models(query: Annotated[SearchQuery, Query()], caller: CallerDep, state: StateDep) -> FoundModels:
    """Search for models."""
    found = [model for model in await _models(caller, state) if query.matches(model)]
    page = found[query.offset : query.offset + query.limit]
    total = len(found)
    return FoundModels(models=page, total_count=total, total=total, limit=query.limit, offset=query.offset)


@router.get("/{model_id:path}", operation_id="get_model", responses=documented(401, 404, 422, 503))
async def get_model(model_id: ModelId, caller: CallerDep, state: StateDep) -> ModelView:
    """Return a model."""
    await _check(caller, state)
    model = await state.catalogue.find(model_id)
    if model is None:
        raise NotFound("There is no such model.")
    return view(model)


async def _models(caller: Claims, state: State) -> list[ModelView]:
    await _check(caller, state)
    return [view(model) for model in await state.catalogue.models()]


async def _check(caller: Claims, state: State) -> None:
    async def work(session: Session) -> None:
        await users.require_role(session, caller)

    await state.database.read(work)


def view(model: OfferedModel) -> ModelView:
    """Show a model to callers."""
    return ModelView(
        id=model.id,
        name=model.name,
        context_length=model.context_tokens or 0,
        prompt_price=number(model.prices.input),
        completion_price=number(model.prices.output),
        input_cache_read_price=number(model.prices.cached_input),
        is_active=model.is_served,
    )


def number(dollars: Any) -> float | None:
    """Return dollars as a JSON number."""
    return None if dollars is None else float(dollars)
