"""Provide handlers with the settings, the database and the caller."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from fastapi.security import HTTPBearer, OAuth2PasswordBearer

from app import addresses
from app.db.database import Database, Session
from app.errors import Unauthenticated
from app.security import tokens
from app.security.tokens import Claims
from app.settings import Settings
from services.accounts import api_keys
from services.accounts.api_keys import KeyClaims
from services.accounts.logins import Limits, Logins
from services.accounts.sessions import Lifetimes
from services.chat import runner
from services.chat.catalogue import Catalogue
from services.chat.runner import TurnRunner
from services.chat.upstream import Upstream
from services.usage.pricing import PriceList

bearer = OAuth2PasswordBearer(
    tokenUrl="auth/token",  # relative, to work below a prefix of a proxy
    scheme_name="OAuth2Password",
    scopes={"offline_access": "a refresh token beside the access token"},
    description="An access token, from `POST /auth/login`, or from `POST /auth/token` with a form.",
    auto_error=False,
)
ACCEPTS_API_KEY = Depends(
    HTTPBearer(
        scheme_name="ApiKey",
        bearerFormat="fbk_…",
        description="An API key of a service account or an admin: `python main.py issue-key NAME`.",
        auto_error=False,
    )
)
"""For OpenAPI alone; `CallerOrKeyDep` reads the key."""

ACCEPTS_METRICS_TOKEN = Depends(
    HTTPBearer(
        scheme_name="MetricsToken",
        description="The setting `METRICS_TOKEN`; while it is empty, no token is needed.",
        auto_error=False,
    )
)
"""For OpenAPI alone; the handler reads the token."""


_CLAIMS = "foundation.claims"

S = TypeVar("S")
T = TypeVar("T")


class State:
    """Hold the objects of a process; the lifespan creates them."""

    def __init__(
        self,
        settings: Settings,
        signing_key: str,
        prices: PriceList,
        database: Database,
        upstream: Upstream,
        replica: Database | None = None,
    ) -> None:
        self.settings = settings
        self.signing_key = signing_key
        self.checking_keys = (signing_key, *(key.get_secret_value() for key in settings.previous_secret_keys))
        self.lifetimes = Lifetimes(
            timedelta(minutes=settings.access_token_expire_minutes), timedelta(days=settings.refresh_token_expire_days)
        )
        self.logins = Logins(
            database,
            Limits(
                settings.max_failed_logins_per_account,
                settings.max_failed_logins_per_account_total,
                settings.max_failed_logins_per_address,
                timedelta(minutes=settings.failed_login_window_minutes),
            ),
        )
        self.registration_limit = (
            settings.max_registrations_per_address,
            timedelta(minutes=settings.registration_window_minutes),
        )
        self.prices = prices
        self.database = database
        self.replica = replica
        self.upstream = upstream
        self.catalogue = Catalogue(prices, upstream, settings.llm_model, settings.model_names)
        limits = runner.Limits(shutdown=settings.shutdown_seconds)
        self.runner = TurnRunner(
            database,
            upstream,
            prices,
            settings.usage_timezone,
            limits,
            context_tokens=settings.llm_context_tokens,
            stop_on_hangup=settings.stop_on_hangup,
        )

    async def report(self, select: Callable[[Session], Awaitable[S]], work: Callable[[Session, S], Awaitable[T]]) -> T:
        """Read usage from the replica, if there is one.

        Args:
            select: checks the caller and selects whose usage is read, always on the primary.
            work: reads; its transaction is that of `select` if there is no replica.
        """
        if self.replica is None:

            async def both(session: Session) -> T:
                return await work(session, await select(session))

            return await self.database.read(both)
        selected = await self.database.read(select)
        return await self.replica.read(lambda session: work(session, selected))


async def _state(request: Request) -> State:
    state: State = request.app.state.foundation
    return state


StateDep = Annotated[State, Depends(_state)]


async def caller(request: Request, state: StateDep, token: Annotated[str | None, Depends(bearer)]) -> Claims:
    """Identify the caller by an access token, once for each request.

    Raises:
        Unauthenticated: there is no token, or it is invalid.
    """
    if token is None:
        raise Unauthenticated("An access token is required: log in, and send it as `Authorization: Bearer …`.")
    if _CLAIMS not in request.scope:
        request.scope[_CLAIMS] = tokens.verify(token, *state.checking_keys)
    claims: Claims = request.scope[_CLAIMS]
    return claims


CallerDep = Annotated[Claims, Depends(caller)]
"""The caller, from the token alone. The handler's own statement or `users.require_role` checks revocation."""


async def caller_or_key(
    request: Request, state: StateDep, token: Annotated[str | None, Depends(bearer)]
) -> Claims | KeyClaims:
    """Identify the caller by an access token or an API key.

    Raises:
        Unauthenticated: there is neither, or it is invalid.
    """
    if token is not None and api_keys.is_key(token):
        return api_keys.claims(token)
    return await caller(request, state, token)


CallerOrKeyDep = Annotated[Claims | KeyClaims, Depends(caller_or_key)]
"""The same for routes that also accept an API key."""


async def _address(request: Request) -> str:
    return addresses.network_of(request.client.host) if request.client else ""


AddressDep = Annotated[str, Depends(_address)]
"""The caller's address. Behind a proxy uvicorn reads it from `X-Forwarded-For` (`FORWARDED_ALLOW_IPS`)."""
