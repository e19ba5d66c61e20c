"""Reset forgotten passwords with one-time tokens, at most one a user.

A token is stored as a hash. It ends with its use, after `LIFETIME`, with a newer token, and in `sessions.end_all`: when
the password is changed or the account is deactivated.
"""

from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, delete, exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.db import database
from app.errors import Conflict, NotFound
from app.security import tokens
from models import PasswordReset, User
from models.users import IS_ACTIVE
from services.accounts import logins

LIFETIME = timedelta(hours=24)

_PREFIX = "pr"


class Issued(NamedTuple):
    """Hold a new token, which cannot be read again."""

    token: str
    expires_at: datetime


class Owner(NamedTuple):
    """Identify the user of a token."""

    user_id: int
    username: str
    email: str


async def issue(session: AsyncSession, user_id: int) -> Issued:
    """Issue a token, which replaces the user's earlier one.

    Raises:
        NotFound: there is no such user.
        Conflict: the account is not active.
    """
    is_active = await session.scalar(select(IS_ACTIVE).where(User.id == user_id).with_for_update(key_share=True))
    if is_active is None:
        raise NotFound("There is no such user.")
    if not is_active:
        raise Conflict("This account is not active: activate it first.")
    issued = Issued(tokens.new_owned_secret(_PREFIX, user_id), clock.now() + LIFETIME)
    values = {"token_hash": tokens.hash_secret(issued.token), "expires_at": issued.expires_at}
    statement = database.insert(session, PasswordReset).values(user_id=user_id, **values)
    await session.execute(statement.on_conflict_do_update(index_elements=[PasswordReset.user_id], set_=values))
    return issued


def claimed_owner(token: str) -> str:
    """Return the user that a token names, even if it is invalid."""
    return str(tokens.owner_of(_PREFIX, token))


async def find(session: AsyncSession, token: str) -> Owner | None:
    """Return the user of a valid token; otherwise None."""
    user_id = tokens.owner_of(_PREFIX, token)
    if user_id is None:
        return None
    columns = select(User.id, User.username, User.email)
    found = columns.where(User.id == user_id, IS_ACTIVE, exists().where(*_usable(user_id, token)))
    row = (await session.execute(found)).one_or_none()
    return Owner(*row) if row else None


async def use(session: AsyncSession, owner: Owner, token: str, new_hash: str) -> bool:
    """Set a new password, and end the token and every login.

    Returns:
        False if the token is no longer valid; then nothing has changed.
    """
    user_id = owner.user_id
    lock = select(User.id).where(User.id == user_id, IS_ACTIVE).with_for_update(key_share=True)
    if await session.scalar(lock) is None:
        return False
    claim = delete(PasswordReset).where(*_usable(user_id, token)).returning(PasswordReset.user_id)
    if await session.scalar(claim) is None:
        return False
    await logins.set_password(session, user_id, new_hash)
    return True


def _usable(user_id: int, token: str) -> tuple[ColumnElement[bool], ...]:
    return (
        PasswordReset.user_id == user_id,
        PasswordReset.token_hash == tokens.hash_secret(token),
        PasswordReset.expires_at > clock.now(),
    )
