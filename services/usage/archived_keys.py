"""Find the idempotency keys of archived messages.

A key lives forever, also while its message is in an archive.
"""

from collections.abc import Collection
from typing import cast

from sqlalchemy import Table, bindparam, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.sqlite_connections import BY_KEY
from models import ArchivedKey

Key = tuple[int, str]
"""A user, and an idempotency key of the user."""

_KEYS = cast(Table, ArchivedKey.__table__)
_AMONG = (
    select(_KEYS.c.user_id, _KEYS.c.idempotency_key)
    .where(tuple_(_KEYS.c.user_id, _KEYS.c.idempotency_key).in_(bindparam("keys", expanding=True)))
    .execution_options(**BY_KEY)
)


async def among(session: AsyncSession, keys: Collection[Key]) -> set[Key]:
    """Return those of the keys whose message is archived.

    The statement must follow the INSERT of these keys: while it waited, another transaction may have archived them.
    """
    found = await session.execute(_AMONG, {"keys": list(keys)})
    return {(row.user_id, row.idempotency_key) for row in found}


async def request_hash(session: AsyncSession, key: Key) -> str | None:
    """Return the request hash of an archived key, or None."""
    own = ArchivedKey.user_id == key[0], ArchivedKey.idempotency_key == key[1]
    return await session.scalar(select(ArchivedKey.request_hash).where(*own))
