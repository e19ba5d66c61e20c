"""Logging in over HTTP: tokens, how they are refreshed, how they end, and changing the password."""

from typing import Annotated

from fastapi import APIRouter, Form, status
from pydantic import BaseModel, Field

from app import clock, passwords, tokens
from app.database import Session
from app.errors import InvalidRequest, Unauthenticated
from routers.dependencies import AddressDep, CallerDep, State, StateDep
from routers.problems import documented
from routers.requests import ExactRoute, StorableText
from services import accounts, logins, sessions, token_stats
from services.sessions import Grant

router = APIRouter(prefix="/auth", tags=["accounts"], route_class=ExactRoute)

_REFRESHABLE = "offline_access"

Password = Annotated[str, Field(min_length=1, max_length=4096)]
NewPassword = Annotated[StorableText, Field(min_length=passwords.MIN_LENGTH, max_length=passwords.MAX_LENGTH)]
Scope = Annotated[
    str,
    Field(
        max_length=1024,
        description=f"With `{_REFRESHABLE}` a refresh token is given, too (OpenID Connect Core, section 11).",
    ),
]


class Login(BaseModel):
    """What somebody logs in with."""

    username: Annotated[StorableText, Field(min_length=1, max_length=255)]
    password: Password
    scope: Scope = ""


class LoginForm(Login):
    """The same as an OAuth2 password grant (RFC 6749, section 4.3); what else belongs to it is not looked at."""

    grant_type: Annotated[str, Field(pattern="^password$")] | None = None
    client_id: Annotated[str, Field(max_length=255)] | None = None
    client_secret: Annotated[str, Field(max_length=255)] | None = None


class Refresh(BaseModel):
    """What a login is prolonged with."""

    refresh_token: Annotated[StorableText, Field(min_length=1, max_length=255)]


class PasswordChange(BaseModel):
    """A new password."""

    current_password: Password
    new_password: NewPassword
    scope: Scope = ""


class AccessToken(BaseModel):
    """A token to be sent as `Authorization: Bearer …`; it expires after `expires_in` seconds.

    Where a refresh token was asked for, that one is good for one use within `refresh_expires_in` seconds.
    """

    access_token: str
    token_type: str = "bearer"  # noqa: S105
    expires_in: int
    refresh_token: str | None = None
    refresh_expires_in: int | None = None


def check_new_password(field: str, password: str, *about: str) -> None:
    """Refuses a password that others would guess first; `about` is what anybody knows of the account."""
    if weakness := passwords.weakness(password, *about):
        raise InvalidRequest({field: [f"This password cannot be used: {weakness}."]})


@router.post("/login", responses=documented(401, 422, 429, 503), response_model_exclude_none=True)
async def login(body: Login, address: AddressDep, state: StateDep) -> AccessToken:
    """Logs in with a username and a password."""
    return await _log_in(state, body, address)


@router.post(
    "/token",
    responses=documented(401, 422, 429, 503),
    response_model_exclude_none=True,
    form_limits={"max_fields": 20, "max_files": 0, "max_part_size": 65_536},
)
async def token(form: Annotated[LoginForm, Form()], address: AddressDep, state: StateDep) -> AccessToken:
    """The same as an OAuth2 password form, for the Authorize button of `/docs`."""
    return await _log_in(state, form, address)


@router.post("/refresh", responses=documented(401, 422, 503), response_model_exclude_none=True)
async def refresh(body: Refresh, state: StateDep) -> AccessToken:
    """Gives new tokens for a refresh token, once. Used twice, it ends the login it came from."""
    grant = await state.database.transaction(
        lambda session: sessions.refresh(session, body.refresh_token, state.lifetimes)
    )
    if grant is None:  # only now: what a second use ends is committed
        raise Unauthenticated("The refresh token is not valid, expired, or was used before.")
    return _view(state, grant)


@router.post("/logout", status_code=status.HTTP_204_NO_CONTENT, responses=documented(401, 503))
async def logout(caller: CallerDep, state: StateDep) -> None:
    """Ends the login that this token came from: the token, what it was refreshed from, and what was refreshed since."""

    async def work(session: Session) -> None:
        await accounts.require_role(session, caller)
        await sessions.end(session, caller)

    await state.database.transaction(work)


@router.post("/password", responses=documented(401, 409, 422, 429, 503), response_model_exclude_none=True)
async def change_password(body: PasswordChange, caller: CallerDep, address: AddressDep, state: StateDep) -> AccessToken:
    """Changes the password and ends every login; the answer is a new one."""
    account = await token_stats.account(state.database, caller)
    if account is None or not account.is_active:
        raise Unauthenticated("This token is not taken any more: log in again.")
    found = await state.logins.check(account.username, body.current_password, address)
    check_new_password("new_password", body.new_password, account.username, account.email)
    new_hash = await passwords.hash_password(body.new_password)

    async def work(session: Session) -> Grant:
        version = await logins.change_password(session, found, new_hash)
        proven = found._replace(token_version=version)
        if _is_refreshable(body.scope):
            return await sessions.begin_refreshable(session, proven, state.lifetimes)
        return sessions.begin(proven, state.lifetimes)

    return _view(state, await state.database.transaction(work))


async def _log_in(state: State, body: Login, address: str) -> AccessToken:
    found = await state.logins.check(body.username, body.password, address)
    if not _is_refreshable(body.scope):
        return _view(state, sessions.begin(found, state.lifetimes))
    grant = await state.database.transaction(
        lambda session: sessions.begin_refreshable(session, found, state.lifetimes), repeatable=True
    )
    return _view(state, grant)


def _is_refreshable(scope: str) -> bool:
    return _REFRESHABLE in scope.split()


def _view(state: State, grant: Grant) -> AccessToken:
    claims, lifetime = grant.claims, state.lifetimes.access
    issued = tokens.issue(
        claims.user_id, state.signing_key, clock.now(), lifetime, jti=claims.jti, version=claims.version
    )
    view = AccessToken(access_token=issued, expires_in=int(lifetime.total_seconds()))
    if grant.refresh_token is not None:
        view.refresh_token = grant.refresh_token
        view.refresh_expires_in = int(state.lifetimes.refresh.total_seconds())
    return view
