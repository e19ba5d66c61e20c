"""Usage over HTTP: the records of backends that call a model themselves."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from app import clock, money
from app.database import Session
from models.messages import MAX_TOKENS
from routers.dependencies import StateDep, UserId
from routers.problems import documented
from routers.requests import ExactRoute, StorableText
from services import accounts, usage_records

router = APIRouter(prefix="/usage", tags=["usage"], route_class=ExactRoute)

_OLDEST = datetime(1970, 1, 1, tzinfo=UTC)
_CLOCK_SKEW = timedelta(days=1)
Tokens = Annotated[int, Field(strict=True, ge=0, le=MAX_TOKENS)]


def _instant(value: datetime) -> datetime:
    try:
        value = clock.as_utc(value)
    except OverflowError:
        raise ValueError("it lies outside of the calendar") from None
    if not _OLDEST <= value <= clock.now() + _CLOCK_SKEW:
        raise ValueError("it must not lie before 1970, nor more than a day in the future")
    return value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("it must be a decimal number")
    return value


class UsageRecordBody(BaseModel):
    """One answer of a model."""

    id: Annotated[
        StorableText, Field(min_length=1, max_length=255, description="The caller's own key, unique per user.")
    ]
    user_id: int = Field(strict=True, ge=1, le=2**31 - 1)
    model: Annotated[StorableText, Field(min_length=1, max_length=255)]
    input_tokens: Tokens
    output_tokens: Tokens
    cached_input_tokens: Tokens = Field(0, description="Part of `input_tokens`.")
    cost: Annotated[
        Decimal | None,
        BeforeValidator(_no_bool),
        Field(
            ge=0,
            le=money.MAX_MESSAGE_COST,
            allow_inf_nan=False,
            description="US dollars, kept to 1e-10; without it the price list says.",
        ),
        AfterValidator(lambda value: None if value is None else money.to_usd(value)),
    ] = None
    conversation_id: Annotated[StorableText, Field(min_length=1, max_length=255)] | None = None
    role: Literal["assistant", "user", "system", "tool"] = "assistant"
    content: Annotated[StorableText, Field(max_length=1_000_000)] | None = None
    created_at: Annotated[datetime, AfterValidator(_instant)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.cached_input_tokens > self.input_tokens:
            raise ValueError("cached_input_tokens must not exceed input_tokens")
        return self


class UsageRecords(BaseModel):
    """Records to be stored all or none."""

    records: list[UsageRecordBody] = Field(min_length=1, max_length=1000)


class Recorded(BaseModel):
    """How many were stored, and how many were there already."""

    recorded: int
    duplicates: int


@router.post("/records", responses=documented(401, 403, 409, 422, 503))
async def post_records(body: UsageRecords, user_id: UserId, state: StateDep) -> Recorded:
    """Stores and counts usage, all records or none, each id once per user. For the roles `service` and `admin`."""
    records = [usage_records.UsageRecord(**vars(item)) for item in body.records]

    async def work(session: Session) -> usage_records.Recorded:
        await accounts.require_role(session, user_id, "service", "admin")
        return await usage_records.record(session, records, state.prices, state.settings.usage_timezone)

    result = await state.database.transaction(work, repeatable=True)
    return Recorded(recorded=result.recorded, duplicates=result.duplicates)
