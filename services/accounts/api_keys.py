"""Long-lived keys with which backends report usage: shown once, stored as hashes, revoked at any time."""

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
"""Whose keys are good for something."""

_SHOWN_CHARACTERS = 6


class KeyClaims(NamedTuple):
    """What a key says: whose it is."""

    user_id: int
    key_hash: str


class Issued(NamedTuple):
    """A new key; it cannot be read again."""

    id: int
    key: str


class KeyView(NamedTuple):
    """A key as it can be told from others."""

    id: int
    username: str
    name: str
    prefix: str
    created_at: datetime
    revoked_at: datetime | None


def is_key(text: str) -> bool:
    """Whether it is meant to be a key rather than an access token, which has no such beginning."""
    return text.startswith(f"{PREFIX}_")


def claims(text: str) -> KeyClaims:
    """What a key says; does not ask the database.

    Raises:
        Unauthenticated: it is no key.
    """
    user_id = tokens.owner_of(PREFIX, text)
    if user_id is None:
        raise Unauthenticated("The API key is not valid.")
    return KeyClaims(user_id, tokens.hash_secret(text))


def still_valid(caller: KeyClaims) -> tuple[ColumnElement[bool], ...]:
    """Conditions, for a statement that reads the user of a key anyway, that the key is taken."""
    mine = (ApiKey.user_id == caller.user_id, ApiKey.key_hash == caller.key_hash)
    return (exists().where(*mine, ApiKey.revoked_at.is_(None)),)


async def issue(session: AsyncSession, username: str, name: str) -> Issued:
    """Makes a key for a service account or an admin.

    Raises:
        NotFound: there is no such user.
        Conflict: the user's keys would be good for nothing.
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
    """All keys, the oldest first."""
    columns = (ApiKey.id, User.username, ApiKey.name, ApiKey.prefix, ApiKey.created_at, ApiKey.revoked_at)
    rows = await session.execute(select(*columns).join(User, User.id == ApiKey.user_id).order_by(ApiKey.id))
    return [KeyView(*row) for row in rows]


async def revoke(session: AsyncSession, key_id: int) -> None:
    """Ends a key.

    Raises:
        NotFound: there is no such key, or it was revoked before.
    """
    living = (ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
    revoked = update(ApiKey).where(*living).values(revoked_at=clock.now()).returning(ApiKey.id)
    if await session.scalar(revoked) is None:
        raise NotFound(f"There is no key {key_id} that is not revoked.")
