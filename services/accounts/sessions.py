"""Begin, refresh and end logins: access tokens and rotating refresh tokens.

An access token is valid while its user is active, its version is the user's, and its `jti` is not revoked. A refresh
token is used once and replaced. A second use means theft, and ends the whole login (RFC 9700, section 4.14.2).
"""

import logging
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, bindparam, delete, exists, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.db import database
from app.errors import Unauthenticated
from app.security import tokens
from app.security.tokens import Claims
from models import PasswordReset, RefreshToken, RevokedToken, User
from models.users import IS_ACTIVE, TOKEN_VERSION

logger = logging.getLogger(__name__)

_PREFIX = "rt"
_EARLY = timedelta(seconds=15)


class Lifetimes(NamedTuple):
    """Set the lifetimes of tokens."""

    access: timedelta
    refresh: timedelta


class Credentials(NamedTuple):
    """Hold the data against which a login is checked."""

    user_id: int
    hashed_password: str
    is_active: bool
    token_version: int


class Grant(NamedTuple):
    """Hold a new access token's claims, and perhaps a refresh token."""

    claims: Claims
    refresh_token: str | None


def still_valid(claims: Claims) -> tuple[ColumnElement[bool], ...]:
    """Return conditions for a query of the user: the token is valid."""
    return _still_valid(claims.user_id, claims.jti, claims.version)


def _still_valid(user_id: Any, jti: Any, version: Any) -> tuple[ColumnElement[bool], ...]:
    revoked = exists().where(RevokedToken.user_id == user_id, RevokedToken.jti == jti)
    return TOKEN_VERSION == version, ~revoked  # noqa: SIM300


STILL_VALID = _still_valid(bindparam("user_id"), bindparam("jti"), bindparam("version"))
"""The same conditions with the claims as parameters, for statements that are built once."""


def parameters(caller: Claims) -> dict[str, Any]:
    """Return the parameters of `STILL_VALID`; `user_id` is one of them."""
    return {"user_id": caller.user_id, "jti": caller.jti, "version": caller.version}


def begin(proven: Credentials, lifetimes: Lifetimes) -> Grant:
    """Issue an access token alone, without storing anything."""
    return Grant(_new_claims(proven.user_id, proven.token_version, lifetimes), None)


async def begin_refreshable(session: AsyncSession, proven: Credentials, lifetimes: Lifetimes) -> Grant:
    """Issue an access token and a refresh token.

    Raises:
        Unauthenticated: the user was concurrently deleted or deactivated, or changed the password.
    """
    if await _lock(session, proven.user_id) != proven.token_version:
        raise Unauthenticated("The account was changed concurrently: log in again.")
    await _forget_expired(session, proven.user_id)
    return await _grant(session, proven.user_id, proven.token_version, tokens.new_secret(12), lifetimes)


async def refresh(session: AsyncSession, refresh_token: str, lifetimes: Lifetimes) -> Grant | None:
    """Replace a refresh token by new tokens.

    Returns:
        None if the token is invalid. The caller must commit in this case, too: a stolen login may have been ended.
    """
    found = await _find(session, refresh_token)
    if found is None:
        return None
    user_id = found.user_id
    if found.used_at is not None:
        logger.warning("a refresh token of user %d was used twice: its login is ended", user_id)
        await _end(session, user_id, found.session_id)
        return None
    found.used_at = clock.now()
    await _forget_expired(session, user_id)
    return await _grant(session, user_id, found.token_version, found.session_id, lifetimes)


async def resume(session: AsyncSession, refresh_token: str, lifetimes: Lifetimes) -> Grant | None:
    """Continue a login whose refresh token is in a cookie.

    The refresh token is prolonged, not replaced. The access token is the same until it expires: tabs share it, and a
    response that is lost on the way ends no login.

    Returns:
        None if the token is invalid.
    """
    found = await _find(session, refresh_token)
    if found is None or found.used_at is not None:
        return None
    if found.access_expires_at <= clock.now() + _EARLY:
        claims = _new_claims(found.user_id, found.token_version, lifetimes)
        found.access_jti, found.access_expires_at = claims.jti, claims.expires_at
    found.expires_at = clock.now() + lifetimes.refresh
    claims = Claims(found.user_id, found.access_jti, found.token_version, found.access_expires_at)
    return Grant(claims, refresh_token)


async def end_by_refresh_token(session: AsyncSession, refresh_token: str) -> None:
    """End the login of a refresh token, if it is valid."""
    found = await _find(session, refresh_token)
    if found is not None:
        await _end(session, found.user_id, found.session_id)


async def _find(session: AsyncSession, refresh_token: str) -> RefreshToken | None:
    """Lock the user's logins, and return an unexpired token's row."""
    user_id = tokens.owner_of(_PREFIX, refresh_token)
    if user_id is None:
        return None
    version = await _lock(session, user_id)
    found = await session.get(RefreshToken, (user_id, tokens.hash_secret(refresh_token)))
    if found is None or version != found.token_version or found.expires_at <= clock.now():
        return None
    return found


async def end(session: AsyncSession, claims: Claims) -> None:
    """End a login: its access token and all tokens refreshed from it.

    Raises:
        Unauthenticated: the user was concurrently deleted or deactivated.
    """
    if await _lock(session, claims.user_id) is None:
        raise Unauthenticated("The account was changed concurrently.")
    await _forget_expired(session, claims.user_id)
    this = database.insert(session, RevokedToken)
    await session.execute(
        this.values(user_id=claims.user_id, jti=claims.jti, expires_at=claims.expires_at).on_conflict_do_nothing()
    )
    mine = select(RefreshToken.session_id).where(
        RefreshToken.user_id == claims.user_id, RefreshToken.access_jti == claims.jti
    )
    session_id = await session.scalar(mine)
    if session_id is not None:
        await _end(session, claims.user_id, session_id)


async def end_all(session: AsyncSession, user_id: int) -> int:
    """End every login and the password reset of an existing user.

    Returns:
        The version of the tokens that are accepted from now on.
    """
    raised = update(User).where(User.id == user_id).values(token_version=TOKEN_VERSION + 1)
    version = (await session.execute(raised.returning(User.token_version))).scalar_one()
    for table in (RefreshToken, PasswordReset):
        await session.execute(delete(table).where(table.user_id == user_id))
    return version or 0


async def _lock(session: AsyncSession, user_id: int) -> int | None:
    """Lock a user's logins; return the token version, or None if inactive."""
    statement = select(TOKEN_VERSION).where(User.id == user_id, IS_ACTIVE).with_for_update(key_share=True)
    return await session.scalar(statement)


def _new_claims(user_id: int, version: int, lifetimes: Lifetimes) -> Claims:
    return Claims(user_id, tokens.new_secret(12), version, clock.now() + lifetimes.access)


async def _grant(session: AsyncSession, user_id: int, version: int, session_id: str, lifetimes: Lifetimes) -> Grant:
    claims = _new_claims(user_id, version, lifetimes)
    refresh_token = tokens.new_owned_secret(_PREFIX, user_id)
    await session.execute(
        insert(RefreshToken).values(
            user_id=user_id,
            token_hash=tokens.hash_secret(refresh_token),
            session_id=session_id,
            token_version=version,
            access_jti=claims.jti,
            access_expires_at=claims.expires_at,
            expires_at=clock.now() + lifetimes.refresh,
        )
    )
    return Grant(claims, refresh_token)


async def _end(session: AsyncSession, user_id: int, session_id: str) -> None:
    mine = (RefreshToken.user_id == user_id, RefreshToken.session_id == session_id)
    columns = (RefreshToken.user_id, RefreshToken.access_jti, RefreshToken.access_expires_at)
    living = select(*columns).where(*mine, RefreshToken.access_expires_at > clock.now())
    revoking = database.insert(session, RevokedToken).from_select(["user_id", "jti", "expires_at"], living)
    await session.execute(revoking.on_conflict_do_nothing())
    await session.execute(delete(RefreshToken).where(*mine))


async def _forget_expired(session: AsyncSession, user_id: int) -> None:
    """Delete a user's expired rows, which are refused anyway."""
    for table in (RefreshToken, RevokedToken):
        await session.execute(delete(table).where(table.user_id == user_id, table.expires_at <= clock.now()))
