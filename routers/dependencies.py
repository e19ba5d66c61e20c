"""What handlers are given: the settings, the database, the caller."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import OAuth2PasswordBearer

from app import tokens
from app.database import Database
from app.errors import Unauthenticated
from app.settings import Settings
from services.pricing import PriceList
from services.turns import Limits, Turns
from services.upstream import Upstream

_bearer = OAuth2PasswordBearer(tokenUrl="/auth/token", auto_error=False)


class State:
    """What lives as long as the process: set once, by the lifespan in `main`."""

    def __init__(
        self, settings: Settings, signing_key: str, prices: PriceList, database: Database, upstream: Upstream
    ) -> None:
        self.settings = settings
        self.signing_key = signing_key
        self.prices = prices
        self.database = database
        self.upstream = upstream
        limits = Limits(shutdown=settings.shutdown_seconds)
        self.turns = Turns(database, upstream, prices, settings.usage_timezone, limits)


async def _state(request: Request) -> State:
    state: State = request.app.state.foundation
    return state


StateDep = Annotated[State, Depends(_state)]


async def _user_id(state: StateDep, token: Annotated[str | None, Depends(_bearer)]) -> int:
    if token is None:
        raise Unauthenticated("An access token is needed: log in, and send it as `Authorization: Bearer …`.")
    return tokens.verify(token, state.signing_key)


UserId = Annotated[int, Depends(_user_id)]
"""The id of the caller, from the token alone; the database was not asked."""
