"""Serve logins: access tokens, refresh tokens, and new passwords."""

import logging
from typing import Annotated, Literal

from fastapi import APIRouter, Form, status
from pydantic import BaseModel, Field

from app import clock
from app.db.database import Session
from app.errors import InvalidRequest, Unauthenticated
from app.security import passwords, tokens
from routers.http.dependencies import AddressDep, CallerDep, State, StateDep
from routers.http.problems import documented
from routers.http.requests import ExactRoute, StorableText, examples
from services import earlier_backend
from services.accounts import logins, password_resets, sessions, users
from services.accounts.sessions import Grant
from services.usage import token_stats

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/auth", tags=["accounts"], route_class=ExactRoute)

REFRESHABLE = "offline_access"

Password = Annotated[str, Field(min_length=1, max_length=4096, examples=["correct horse battery"])]
NewPassword = Annotated[StorableText, Field(min_length=passwords.MIN_LENGTH, max_length=passwords.MAX_LENGTH)]
Scope = Annotated[
    Annotated[str, Field(max_length=1024)] | None,
    Field(description=f"`{REFRESHABLE}` requests a refresh token as well (OpenID Connect Core, section 11)."),
]


class Login(BaseModel):
    """Credentials."""

    model_config = examples({"username": "ayu", "password": "correct horse battery", "scope": REFRESHABLE})

    username: Annotated[StorableText, Field(min_length=1, max_length=255, examples=["ayu"])]
    password: Password
    scope: Scope = None


class LoginForm(Login):
    """An OAuth2 password grant (RFC 6749, section 4.3).

    The client's credentials are ignored.
    """

    model_config = examples({"username": "ayu", "password": "correct horse battery", "grant_type": "password"})

    grant_type: Annotated[Annotated[str, Field(pattern="^password$")] | None, Field(examples=["password"])] = None
    client_id: Annotated[str, Field(max_length=255)] | None = None
    client_secret: Annotated[str, Field(max_length=255)] | None = None


class Refresh(BaseModel):
    """A refresh token, for new tokens."""

    model_config = examples({"refresh_token": "rt_1_of_an_earlier_answer"})

    refresh_token: Annotated[StorableText, Field(min_length=1, max_length=255)]


class PasswordChange(BaseModel):
    """A new password."""

    model_config = examples(
        {"current_password": "correct horse battery", "new_password": "a battery for every correct horse"}
    )

    current_password: Password
    new_password: NewPassword
    scope: Scope = None


class PasswordReset(BaseModel):
    """A new password, and the one-time token that an admin issued."""

    model_config = examples({"token": "pr_1_from_an_admin", "new_password": "a battery for every correct horse"})

    token: Annotated[StorableText, Field(min_length=1, max_length=255)]
    new_password: NewPassword


class AccessToken(BaseModel):
    """A token to send as `Authorization: Bearer …`.

    It expires after `expires_in` seconds.
    A refresh token, if the login requested one, works once within `refresh_expires_in` seconds.
    """

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105
    expires_in: int
    refresh_token: str | None = None
    refresh_expires_in: int | None = None


def check_new_password(field: str, password: str, *about: str) -> None:
    """Refuse a password that attackers would guess first.

    Args:
        field: the name of the field in the error.
        password: the new password.
        about: what an attacker may know of the account, such as its username.

    Raises:
        InvalidRequest: the password is too easy to guess.
    """
    if weakness := passwords.weakness(password, *about):
        raise InvalidRequest({field: [f"This password cannot be used: {weakness}."]})


@router.post("/login", responses=documented(401, 422, 429, 503), response_model_exclude_none=True)
async def login(body: Login, address: AddressDep, state: StateDep) -> AccessToken:
    """Log in with a username and a password."""
    return await log_in(state, body, address)


@router.post(
    "/token",
    responses=documented(401, 422, 429, 503),
    response_model_exclude_none=True,
    form_limits={"max_fields": 20, "max_files": 0, "max_part_size": 65_536},
)
async def login_with_form(form: Annotated[LoginForm, Form()], address: AddressDep, state: StateDep) -> AccessToken:
    """Log in with an OAuth2 password form, as `/docs` does."""
    return await log_in(state, form, address)


@router.post("/refresh", responses=documented(401, 422, 503), response_model_exclude_none=True)
async def refresh(body: Refresh, state: StateDep) -> AccessToken:
    """Exchange a refresh token for new ones; reuse ends the login."""
    grant = await state.database.transaction(
        lambda session: sessions.refresh(session, body.refresh_token, state.lifetimes)
    )
    if grant is None:  # raised after the commit, so that a second use ends the login
        raise Unauthenticated("The refresh token is invalid, expired, or already used: log in again.")
    return _view(state, grant)


@router.post("/logout", status_code=status.HTTP_204_NO_CONTENT, responses=documented(401, 503))
async def logout(caller: CallerDep, state: StateDep) -> None:
    """End the login of this token, with every token refreshed from it."""

    async def work(session: Session) -> None:
        await users.require_role(session, caller)
        await sessions.end(session, caller)

    await state.database.transaction(work)


@router.post("/password", responses=documented(401, 409, 422, 429, 503), response_model_exclude_none=True)
async def change_password(body: PasswordChange, caller: CallerDep, address: AddressDep, state: StateDep) -> AccessToken:
    """Change the password, end every login, and return a new one."""
    account = await token_stats.account(state.database, caller)
    if account is None or not account.is_active:
        raise Unauthenticated("This token is no longer accepted: log in again.")
    found = await state.logins.check(account.username, body.current_password, address)
    check_new_password("new_password", body.new_password, account.username, account.email)
    new_hash = await earlier_backend.hash_password(state.database, body.new_password, "new_password")

    async def work(session: Session) -> Grant:
        version = await logins.change_password(session, found, new_hash)
        proven = found._replace(token_version=version)
        if _is_refreshable(body.scope):
            return await sessions.begin_refreshable(session, proven, state.lifetimes)
        return sessions.begin(proven, state.lifetimes)

    return _view(state, await state.database.transaction(work))


@router.post("/reset-password", status_code=status.HTTP_204_NO_CONTENT, responses=documented(401, 422, 429, 503))
async def reset_password(body: PasswordReset, address: AddressDep, state: StateDep) -> None:
    """Set a forgotten password with a one-time token; end every login."""
    owner = await _owner_of(body.token, address, state)
    check_new_password("new_password", body.new_password, owner.username, owner.email)
    new_hash = await earlier_backend.hash_password(state.database, body.new_password, "new_password")
    if not await state.database.transaction(lambda session: password_resets.use(session, owner, body.token, new_hash)):
        raise _unusable()
    logger.info("user %d reset their password", owner.user_id)


async def _owner_of(token: str, address: str, state: State) -> password_resets.Owner:
    async with state.logins.limiting_resets(password_resets.claimed_owner(token), address):
        owner = await state.database.read(lambda session: password_resets.find(session, token))
        if owner is None:
            raise _unusable()
        return owner


def _unusable() -> Unauthenticated:
    return Unauthenticated("The reset token is invalid, expired, or already used: ask an admin for a new one.")


async def log_in(state: State, body: Login, address: str) -> AccessToken:
    """Check the credentials, and issue tokens."""
    found = await state.logins.check(body.username, body.password, address)
    if not _is_refreshable(body.scope):
        return _view(state, sessions.begin(found, state.lifetimes))
    grant = await state.database.transaction(
        lambda session: sessions.begin_refreshable(session, found, state.lifetimes), repeatable=True
    )
    return _view(state, grant)


async def resume(state: State, refresh_token: str) -> AccessToken | None:
    """Continue the login of a cookie; None if it has ended."""
    grant = await state.database.transaction(
        lambda session: sessions.resume(session, refresh_token, state.lifetimes), repeatable=True
    )
    return _view(state, grant) if grant else None


def _is_refreshable(scope: str | None) -> bool:
    return REFRESHABLE in (scope or "").split()


def _view(state: State, grant: Grant) -> AccessToken:
    claims, now = grant.claims, clock.now()
    lifetime = claims.expires_at - now
    issued = tokens.issue(claims.user_id, state.signing_key, now, lifetime, jti=claims.jti, version=claims.version)
    view = AccessToken(access_token=issued, expires_in=round(lifetime.total_seconds()))
    if grant.refresh_token is not None:
        view.refresh_token = grant.refresh_token
        view.refresh_expires_in = int(state.lifetimes.refresh.total_seconds())
    return view
