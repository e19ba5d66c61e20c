"""Serve registration, and the caller with their monthly usage."""

from typing import Annotated, Literal, Self

from email_validator import EmailNotValidError, validate_email
from fastapi import APIRouter, Query, status
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from app.clock import Month
from app.errors import Forbidden, Unauthenticated
from routers.http.dependencies import AddressDep, CallerDep, StateDep
from routers.http.problems import documented
from routers.http.requests import ExactRoute, StorableText, examples
from routers.logins import NewPassword, check_new_password
from services import earlier_backend
from services.accounts import attempts, usernames, users
from services.accounts.attempts import Limit
from services.accounts.users import NewAccount
from services.usage import token_stats

router = APIRouter(prefix="/auth", tags=["accounts"], route_class=ExactRoute)


def _email(value: str) -> str:
    try:
        return validate_email(value, check_deliverability=False, globally_deliverable=False).normalized
    except EmailNotValidError as error:
        raise ValueError(str(error)) from None


MAX_MONTHS = 36
"""The largest page of `GET /auth/me`. The frontend's "Load more" requests larger pages, which must not fail."""


class Registration(BaseModel):
    """A new account."""

    model_config = examples({"username": "ayu", "email": "ayu@example.com", "password": "correct horse battery"})

    username: Annotated[
        StorableText, Field(min_length=1, max_length=usernames.MAX_LENGTH), AfterValidator(usernames.check_new)
    ]
    email: Annotated[StorableText, Field(max_length=254), AfterValidator(_email)]
    password: NewPassword
    role: StorableText | None = Field(default=None, description="Only `user`; every other role is refused with 403.")


Role = Annotated[Literal["user", "service", "admin"], BeforeValidator(lambda role: role if role in _ROLES else "user")]
"""The roles of callers; an unknown role of an old database counts as `user`."""

_ROLES = ("user", "service", "admin")


class AccountView(BaseModel):
    """A user."""

    id: int
    username: str
    email: str
    role: Role
    is_active: bool


class MonthView(BaseModel):
    """The usage of one month."""

    month: str = Field(examples=["2024-12"])
    input_tokens: int
    output_tokens: int
    total_tokens: int
    total_cost: float = Field(description="US dollars")
    message_count: int


class TokenStatsView(BaseModel):
    """Months with usage, newest first."""

    monthly_stats: list[MonthView]
    total_months: int
    has_more: bool


class Me(AccountView):
    """The caller and their usage."""

    token_stats: TokenStatsView | None


def _month(value: str) -> str:
    return str(Month.parse(value))


class MeQuery(BaseModel):
    """Which months to show."""

    limit: Annotated[int, AfterValidator(lambda limit: min(limit, MAX_MONTHS))] = Field(
        12, ge=1, description=f"At most this many months; above {MAX_MONTHS} it counts as {MAX_MONTHS}."
    )
    before: Annotated[str, AfterValidator(_month)] | None = Field(
        None, description="Only months older than this one, such as `2024-06`: the next page."
    )
    from_year: int | None = Field(None, ge=1, le=9999, description="With `from_month`: only this month and newer.")
    from_month: int | None = Field(None, ge=1, le=12)
    include_token_stats: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.from_year is None) != (self.from_month is None):
            raise ValueError("from_year and from_month require each other: send both or neither")
        return self

    def page(self) -> token_stats.Page:
        """Convert the query to the service's own type."""
        since = Month(self.from_year, self.from_month) if self.from_year and self.from_month else None
        return token_stats.Page(self.limit, Month.parse(self.before) if self.before else None, since)


@router.post("/register", status_code=status.HTTP_201_CREATED, responses=documented(403, 409, 422, 429, 503))
async def register(body: Registration, address: AddressDep, state: StateDep) -> AccountView:
    """Create an account with the role `user`."""
    if body.role not in (None, "user"):
        raise Forbidden("A new account has the role user: leave out the role, and ask an admin for another one.")
    check_new_password("password", body.password, body.username, body.email)
    limit = Limit(attempts.key("registration", address), *state.registration_limit)
    await state.database.transaction(lambda session: attempts.count(session, [limit]))
    hashed_password = await earlier_backend.hash_password(state.database, body.password)
    account = await state.database.transaction(
        lambda session: users.register(session, NewAccount(body.username, body.email, hashed_password))
    )
    return AccountView.model_validate(account, from_attributes=True)


@router.get("/me", responses=documented(401, 422, 503))
async def get_me(caller: CallerDep, query: Annotated[MeQuery, Query()], state: StateDep) -> Me:
    """Show the caller, and the months with usage, newest first."""
    stats = None
    if query.include_token_stats:
        found = await token_stats.account_with_stats(state.database, caller, query.page())
        account, stats = found if found else (None, None)
    else:
        account = await token_stats.account(state.database, caller)
    if account is None or not account.is_active:
        raise Unauthenticated("This token is no longer accepted: log in again.")
    return Me(**vars(account), token_stats=_view(stats) if stats else None)


def _view(stats: token_stats.TokenStats) -> TokenStatsView:
    months = [
        MonthView(
            month=str(month.month),
            input_tokens=month.input_tokens,
            output_tokens=month.output_tokens,
            total_tokens=month.total_tokens,
            total_cost=float(month.total_cost),
            message_count=month.message_count,
        )
        for month in stats.months
    ]
    return TokenStatsView(monthly_stats=months, total_months=stats.total_months, has_more=stats.has_more)
