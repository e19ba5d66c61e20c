"""Serve usage records of backends that call a model themselves."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app import clock, money
from app.db.database import Session
from models.messages import MAX_TOKENS
from routers.http.dependencies import ACCEPTS_API_KEY, CallerOrKeyDep, StateDep
from routers.http.problems import documented
from routers.http.requests import ExactRoute, StorableText, examples, largest_body, matching
from services.accounts import api_keys, users
from services.usage import records

router = APIRouter(prefix="/usage", tags=["usage"], route_class=ExactRoute)

_OLDEST = datetime(1970, 1, 1, tzinfo=UTC)
_CLOCK_SKEW = timedelta(days=1)
_INSTANT_WANTED = "a time with its offset from UTC, such as 2024-12-31T23:59:59Z"
_EXAMPLE = {"id": "answer-1", "user_id": 1, "model": "gpt-4o-mini", "input_tokens": 1200, "output_tokens": 350}
Tokens = Annotated[int, Field(strict=True, ge=0, le=MAX_TOKENS)]


def _instant(value: datetime) -> datetime:
    try:
        value = clock.as_utc(value)
    except OverflowError:
        raise ValueError("it is outside of the calendar") from None
    if not _OLDEST <= value <= clock.now() + _CLOCK_SKEW:
        raise ValueError("it must not be before 1970, nor more than a day in the future")
    return value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("it must be a decimal number")
    return value


def _text_only(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"it must be {_INSTANT_WANTED}")
    return value


Dollars = Annotated[
    Decimal,
    BeforeValidator(_no_bool),
    matching(r"-?\d+(\.\d+)?([eE][+-]?\d{1,9})?", "a decimal number"),
    Field(ge=0, le=money.MAX_MESSAGE_COST, allow_inf_nan=False),
    AfterValidator(money.to_usd),
]
Instant = Annotated[
    datetime,
    AfterValidator(_instant),
    matching(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?([Zz]|[+-]\d{2}:?\d{2})", _INSTANT_WANTED),
    BeforeValidator(_text_only),
]


class UsageRecordBody(BaseModel):
    """One answer of a model; unknown fields are refused.

    A misspelt `cost` would be lost money.
    """

    model_config = ConfigDict(extra="forbid")

    id: Annotated[
        StorableText, Field(min_length=1, max_length=255, description="The caller's own key, unique per user.")
    ]
    user_id: int = Field(strict=True, ge=1, le=2**31 - 1)
    model: Annotated[StorableText, Field(min_length=1, max_length=255)]
    input_tokens: Tokens
    output_tokens: Tokens
    cached_input_tokens: Annotated[
        Tokens | None,
        AfterValidator(lambda value: value or 0),
        Field(description="Part of `input_tokens`; null means none."),
    ] = 0
    cost: Dollars | None = Field(None, description="US dollars, rounded to 1e-10; the price list is the default.")
    conversation_id: Annotated[StorableText, Field(min_length=1, max_length=255)] | None = None
    role: Literal["assistant", "user", "system", "tool"] = "assistant"
    content: Annotated[StorableText, Field(max_length=1_000_000)] | None = None
    created_at: Instant | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.cached_input_tokens or 0) > self.input_tokens:
            raise ValueError("cached_input_tokens must not exceed input_tokens")
        return self


class UsageRecords(BaseModel):
    """Records to store, all or none."""

    model_config = ConfigDict(extra="forbid") | examples({"records": [_EXAMPLE]})

    records: list[UsageRecordBody] = Field(min_length=1, max_length=1000)


class Recorded(BaseModel):
    """The counts of stored records and of duplicates."""

    recorded: int
    duplicates: int


@router.post("/records", responses=documented(401, 403, 409, 422, 503), dependencies=[ACCEPTS_API_KEY])
@largest_body(lambda state: state.settings.max_body_bytes)
async def record_usage(body: UsageRecords, caller: CallerOrKeyDep, state: StateDep) -> Recorded:
    """Store and count usage: all records or none.

    Each id counts once per user: a record sent again is a duplicate, with other figures a conflict (409). A `cost` or
    `created_at` that is omitted matches whatever was stored. Requires the role `service` or `admin`. Accepts an API key
    as well: `Authorization: Bearer fbk_…`.
    """
    batch = [records.UsageRecord(**vars(item)) for item in body.records]

    async def work(session: Session) -> records.Recorded:
        await users.require_role(session, caller, *api_keys.ROLES)
        return await records.record(session, batch, state.prices, state.settings.usage_timezone)

    result = await state.database.transaction(work, repeatable=True)
    return Recorded(recorded=result.recorded, duplicates=result.duplicates)
