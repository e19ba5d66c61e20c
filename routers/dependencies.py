"""What handlers are given: the settings, the database, the caller."""

from datetime import timedelta
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import OAuth2PasswordBearer

from app import tokens
from app.database import Database
from app.errors import Unauthenticated
from app.settings import Settings
from app.tokens import Claims
from services.pricing import PriceList
from services.sessions import Lifetimes
from services.turns import Turns
from services.upstream import Upstream

_bearer = OAuth2PasswordBearer(tokenUrl="/auth/token", auto_error=False)


class State:
    """What lives as long as the process: set once, by the lifespan in `main`."""

    def __init__(
        self, settings: Settings, signing_key: str, prices: PriceList, database: Database, upstream: Upstream
    ) -> None:
        self.settings = settings
        self.signing_key = signing_key
        self.checking_keys = (signing_key, *(key.get_secret_value() for key in settings.previous_secret_keys))
        self.lifetimes = Lifetimes(
            timedelta(minutes=settings.access_token_expire_minutes), timedelta(days=settings.refresh_token_expire_days)
        )
        self.prices = prices
        self.database = database
        self.upstream = upstream
        self.turns = Turns(database, upstream, prices, settings.usage_timezone)


async def _state(request: Request) -> State:
    state: State = request.app.state.foundation
    return state


StateDep = Annotated[State, Depends(_state)]


async def _caller(state: StateDep, token: Annotated[str | None, Depends(_bearer)]) -> Claims:
    if token is None:
        raise Unauthenticated("An access token is needed: log in, and send it as `Authorization: Bearer …`.")
    return tokens.verify(token, *state.checking_keys)


CallerDep = Annotated[Claims, Depends(_caller)]
"""Who calls, from the token alone: whether it is still taken, the handler asks in the statement that it needs anyway,
or with `accounts.require_role`."""
