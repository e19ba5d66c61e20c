"""Find the idempotency keys of archived messages.

A key lives forever, also while its message is in an archive.
"""

from collections.abc import Collection

from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.sqlite_connections import BY_KEY
from models import ArchivedKey

Key = tuple[int, str]
"""A user, and an idempotency key of the user."""

_KEYS = select(ArchivedKey.user_id, ArchivedKey.idempotency_key)
_KEY = tuple_(ArchivedKey.user_id, ArchivedKey.idempotency_key)


async def among(session: AsyncSession, keys: Collection[Key]) -> set[Key]:
    """Return those of the keys whose message is archived.

    The statement must follow the INSERT of these keys: while it waited, another transaction may have archived them.
    """
    found = await session.execute(_KEYS.where(_KEY.in_(keys)), execution_options=BY_KEY)
    return {(row.user_id, row.idempotency_key) for row in found}


async def request_hash(session: AsyncSession, key: Key) -> str | None:
    """Return the request hash of an archived key, or None."""
    own = ArchivedKey.user_id == key[0], ArchivedKey.idempotency_key == key[1]
    return await session.scalar(select(ArchivedKey.request_hash).where(*own))
