"""Serve the caller's model categories, and estimates of what a request costs."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field, StringConstraints

from app.db.database import Session
from app.errors import InvalidRequest
from models import ModelCategory
from routers.http.answers import Done
from routers.http.dependencies import CallerDep, State, StateDep
from routers.http.problems import documented
from routers.http.requests import Digits, ExactRoute, StorableText, examples
from routers.model_catalogue import number
from services.accounts import users
from services.chat import model_categories
from services.chat.catalogue import OfferedModel
from services.chat.model_categories import NewCategory

router = APIRouter(prefix="/user-model-categories", tags=["models"], route_class=ExactRoute)

CategoryId = Annotated[int, Path(ge=1, le=2**63 - 1), Digits]
CategoryName = Annotated[StorableText, Path(min_length=1, max_length=255, examples=["STANDARD"])]
Name = Annotated[StorableText, StringConstraints(strip_whitespace=True, min_length=1, max_length=255)]
ModelId = Annotated[StorableText, Field(min_length=1, max_length=255)]
Tokens = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]

_USUAL_COMPLETION_TOKENS = 500


class CategoryCreation(BaseModel):
    """A new category."""

    model_config = examples({"category_name": "Letters", "display_name": "Letters", "model_id": "openai/gpt-4o"})

    category_name: Name
    display_name: Name
    model_id: ModelId
    description: Annotated[StorableText, Field(max_length=1000)] | None = None


class CategoryChange(BaseModel):
    """What to change of a category."""

    model_config = examples({"model_id": "openai/gpt-4o-mini"})

    model_id: ModelId | None = None
    display_name: Name | None = None
    description: Annotated[StorableText, Field(max_length=1000)] | None = None


class CategoryPricing(BaseModel):
    """Dollars for one token; null if no price is known."""

    prompt_price: float | None
    completion_price: float | None
    request_price: float = 0
    context_length: int = Field(description="0 if unknown")


class CategoryView(BaseModel):
    """A user's name for a model."""

    id: int
    category_name: str
    display_name: str
    model_id: str
    model_name: str
    model_pricing: CategoryPricing
    description: str | None
    sort_order: int
    is_active: bool
    created_at: datetime | None
    updated_at: datetime | None


class CategoryList(BaseModel):
    """The caller's categories in their order."""

    categories: list[CategoryView]
    total_count: int


class PricingInfo(BaseModel):
    """The prices of a category's model; null if unknown."""

    category_name: str
    model_id: str
    model_name: str
    provider: str
    input_cost: float | None = Field(description="Dollars for a million tokens")
    output_cost: float | None = Field(description="Dollars for a million tokens")
    cost_per_1k_input: float | None
    cost_per_1k_output: float | None
    context_length: int = Field(description="0 if unknown")
    max_output: int | None = None


class EstimateRequest(BaseModel):
    """A request to estimate."""

    model_config = examples({"model_id": "openai/gpt-4o", "prompt_tokens": 1000, "max_completion_tokens": 500})

    model_id: ModelId
    prompt_tokens: Tokens
    max_completion_tokens: Tokens | None = Field(
        None, description=f"The tokens of the answer; {_USUAL_COMPLETION_TOKENS} if they are not given."
    )


class CostBreakdown(BaseModel):
    """Dollars for one token."""

    input_cost_per_token: float | None
    output_cost_per_token: float | None


class EstimateView(BaseModel):
    """Dollars for a request; null if no price is known."""

    model_id: str
    model_name: str
    estimated_input_cost: float | None
    estimated_output_cost: float | None
    estimated_total_cost: float | None
    prompt_tokens: int
    estimated_completion_tokens: int
    cost_breakdown: CostBreakdown


@router.get("", operation_id="list_model_categories", responses=documented(401, 503))
async def get_categories(caller: CallerDep, state: StateDep) -> CategoryList:
    """List the caller's categories. A user starts with four."""

    async def look(session: Session) -> list[ModelCategory] | None:
        await users.require_role(session, caller)
        found = await model_categories.listed(session, caller.user_id)
        return None if found is None else list(found)

    async def start(session: Session) -> list[ModelCategory]:
        await users.require_role(session, caller)
        return list(await model_categories.start(session, caller.user_id, state.catalogue.default_for))

    found = await state.database.read(look)
    if found is None:
        found = await state.database.transaction(start, repeatable=True)
    views = [await _view(state, category) for category in found]
    return CategoryList(categories=views, total_count=len(views))


@router.post("", operation_id="add_model_category", responses=documented(401, 409, 422, 503))
async def post_category(body: CategoryCreation, caller: CallerDep, state: StateDep) -> CategoryView:
    """Add a category."""
    await _known(state, body.model_id)

    async def work(session: Session) -> ModelCategory:
        await users.require_role(session, caller)
        await model_categories.start(session, caller.user_id, state.catalogue.default_for)
        return await model_categories.add(session, caller.user_id, NewCategory(**dict(body)))

    return await _view(state, await state.database.transaction(work))


@router.put("/{category_id}", operation_id="change_model_category", responses=documented(401, 404, 422, 503))
async def put_category(
    category_id: CategoryId, body: CategoryChange, caller: CallerDep, state: StateDep
) -> CategoryView:
    """Change a category."""
    values = {name: value for name, value in body.model_dump(exclude_unset=True).items() if value is not None}
    if "model_id" in values:
        await _known(state, values["model_id"])

    async def work(session: Session) -> ModelCategory:
        await users.require_role(session, caller)
        return await model_categories.change(session, caller.user_id, category_id, values)

    return await _view(state, await state.database.transaction(work, repeatable=True))


@router.delete("/{category_id}", operation_id="delete_model_category", responses=documented(401, 404, 422, 503))
async def delete_category(category_id: CategoryId, caller: CallerDep, state: StateDep) -> Done:
    """Delete a category."""

    async def work(session: Session) -> None:
        await users.require_role(session, caller)
        await model_categories.remove(session, caller.user_id, category_id)

    await state.database.transaction(work)
    return Done(message="The model category is deleted.")


@router.get(
    "/{category_name:path}/pricing-info",
    operation_id="get_category_pricing",
    responses=documented(401, 404, 422, 503),
)
async def get_pricing(category_name: CategoryName, caller: CallerDep, state: StateDep) -> PricingInfo:
    """Show what the model of a category costs."""

    async def work(session: Session) -> ModelCategory:
        await users.require_role(session, caller)
        return await model_categories.named(session, caller.user_id, category_name)

    category = await state.database.read(work)
    model = await state.catalogue.find(category.model_id)
    return PricingInfo(
        category_name=category.category_name,
        model_id=category.model_id,
        model_name=_name(category, model),
        provider=_name(category, model).partition(":")[0],
        input_cost=_price_of(1_000_000, model and model.prices.input),
        output_cost=_price_of(1_000_000, model and model.prices.output),
        cost_per_1k_input=_price_of(1_000, model and model.prices.input),
        cost_per_1k_output=_price_of(1_000, model and model.prices.output),
        context_length=0 if model is None else model.context_tokens or 0,
    )


@router.post("/estimate-cost", operation_id="estimate_cost", responses=documented(401, 404, 422, 503))
async def post_estimate(body: EstimateRequest, caller: CallerDep, state: StateDep) -> EstimateView:
    """Estimate what a request costs, by the prices of this moment."""

    async def work(session: Session) -> None:
        await users.require_role(session, caller)

    await state.database.read(work)
    completion = _USUAL_COMPLETION_TOKENS if body.max_completion_tokens is None else body.max_completion_tokens
    estimate = await state.catalogue.estimate(body.model_id, body.prompt_tokens, completion)
    prices = estimate.model.prices
    return EstimateView(
        model_id=estimate.model.id,
        model_name=estimate.model.name,
        estimated_input_cost=number(estimate.input),
        estimated_output_cost=number(estimate.output),
        estimated_total_cost=number(estimate.total),
        prompt_tokens=body.prompt_tokens,
        estimated_completion_tokens=completion,
        cost_breakdown=CostBreakdown(
            input_cost_per_token=number(prices.input), output_cost_per_token=number(prices.output)
        ),
    )


def _price_of(tokens: int, price: Decimal | None) -> float | None:
    return number(None if price is None else price * tokens)


async def _known(state: State, model_id: str) -> None:
    if await state.catalogue.find(model_id) is None:
        raise InvalidRequest({"model_id": ["There is no such model: GET /models lists all."]})


async def _view(state: State, category: ModelCategory) -> CategoryView:
    model = await state.catalogue.find(category.model_id)
    return CategoryView(
        id=category.id,
        category_name=category.category_name,
        display_name=category.display_name,
        model_id=category.model_id,
        model_name=_name(category, model),
        model_pricing=CategoryPricing(
            prompt_price=None if model is None else number(model.prices.input),
            completion_price=None if model is None else number(model.prices.output),
            context_length=0 if model is None else model.context_tokens or 0,
        ),
        description=category.description,
        sort_order=category.sort_order or 0,
        is_active=category.is_active is not False,
        created_at=category.created_at,
        updated_at=category.updated_at,
    )


def _name(category: ModelCategory, model: OfferedModel | None) -> str:
    return category.model_id if model is None else model.name
