"""Manage API keys of backends: shown once, stored as hashes, revocable."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, exists, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.errors import Conflict, NotFound, Unauthenticated
from app.security import tokens
from models import ApiKey, User
from models.users import IS_ACTIVE, ROLE

PREFIX = "fbk"
ROLES = ("service", "admin")
"""The roles whose keys are valid."""

_SHOWN_CHARACTERS = 6


class KeyClaims(NamedTuple):
    """Hold the claims of an API key: its user."""

    user_id: int
    key_hash: str


class Issued(NamedTuple):
    """Hold a new key, which cannot be read again."""

    id: int
    key: str


class KeyView(NamedTuple):
    """Describe a key without its secret."""

    id: int
    username: str
    name: str
    prefix: str
    created_at: datetime
    revoked_at: datetime | None


def is_key(text: str) -> bool:
    """Return whether a token has the prefix of API keys."""
    return text.startswith(f"{PREFIX}_")


def claims(text: str) -> KeyClaims:
    """Return the claims of a key, without querying the database.

    Raises:
        Unauthenticated: the text is not a key.
    """
    user_id = tokens.owner_of(PREFIX, text)
    if user_id is None:
        raise Unauthenticated("The API key is not valid.")
    return KeyClaims(user_id, tokens.hash_secret(text))


def still_valid(caller: KeyClaims) -> tuple[ColumnElement[bool], ...]:
    """Return conditions for a query of the user: the key is valid."""
    mine = (ApiKey.user_id == caller.user_id, ApiKey.key_hash == caller.key_hash)
    return (exists().where(*mine, ApiKey.revoked_at.is_(None)),)


async def issue(session: AsyncSession, username: str, name: str) -> Issued:
    """Issue a key to a service account or an admin.

    Raises:
        NotFound: there is no such user.
        Conflict: the user is inactive, or has another role.
    """
    found = select(User.id, ROLE, IS_ACTIVE).where(User.username == username).with_for_update(read=True, key_share=True)
    row = (await session.execute(found)).one_or_none()
    if row is None:
        raise NotFound(f"There is no user {username}.")
    if row.role not in ROLES or not row.is_active:
        raise Conflict(f"{username} is not an active user with the role {' or '.join(ROLES)}.")
    key = tokens.new_owned_secret(PREFIX, row.id)
    values = {
        "user_id": row.id,
        "name": name,
        "prefix": key[: len(f"{PREFIX}_{row.id}_") + _SHOWN_CHARACTERS],
        "key_hash": tokens.hash_secret(key),
        "created_at": clock.now(),
    }
    key_id = (await session.execute(insert(ApiKey).values(**values).returning(ApiKey.id))).scalar_one()
    return Issued(key_id, key)


async def listed(session: AsyncSession) -> Sequence[KeyView]:
    """Return all keys, oldest first."""
    columns = (ApiKey.id, User.username, ApiKey.name, ApiKey.prefix, ApiKey.created_at, ApiKey.revoked_at)
    rows = await session.execute(select(*columns).join(User, User.id == ApiKey.user_id).order_by(ApiKey.id))
    return [KeyView(*row) for row in rows]


async def revoke(session: AsyncSession, key_id: int) -> None:
    """Revoke a key.

    Raises:
        NotFound: there is no such key, or it is already revoked.
    """
    living = (ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
    revoked = update(ApiKey).where(*living).values(revoked_at=clock.now()).returning(ApiKey.id)
    if await session.scalar(revoked) is None:
        raise NotFound(f"There is no key {key_id} that is not revoked.")
