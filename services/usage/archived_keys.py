"""Find the idempotency keys of archived messages.

A key lives forever, also while its message is in an archive.
"""

from collections.abc import Collection, Mapping
from typing import Any, cast

from sqlalchemy import Integer, Select, String, Table, and_, bindparam, column, select, values
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.sqlite_connections import BY_KEY
from models import ArchivedKey

Key = tuple[int, str]
"""A user, and an idempotency key of the user."""

_KEYS = cast(Table, ArchivedKey.__table__)
_IS_ONE = (
    _KEYS.c.user_id == bindparam("user_id", type_=_KEYS.c.user_id.type),
    _KEYS.c.idempotency_key == bindparam("key", type_=_KEYS.c.idempotency_key.type),
)
_ONE = select(_KEYS.c.user_id, _KEYS.c.idempotency_key).where(*_IS_ONE).execution_options(**BY_KEY)


async def among(session: AsyncSession, keys: Collection[Key], options: Mapping[str, Any]) -> set[Key]:
    """Return those of the keys whose message is archived.

    The statement must follow the INSERT of these keys, with the same execution options: while it waited, another
    transaction may have archived them.
    """
    if len(keys) == 1:
        ((user_id, key),) = keys
        found = await session.execute(_ONE, {"user_id": user_id, "key": key})
    else:
        statement = with_keys(select(_KEYS.c.user_id, _KEYS.c.idempotency_key), _KEYS.c, keys)
        found = await session.execute(statement, execution_options=options)
    return {(row.user_id, row.idempotency_key) for row in found}


def with_keys(statement: Select[*tuple[Any, ...]], columns: Any, keys: Collection[Key]) -> Select[*tuple[Any, ...]]:
    """Select only the rows with these keys.

    SQLite finds pairs in an index only by a join, and in a partial index only with its condition.
    """
    pairs = values(column("user_id", Integer), column("idempotency_key", String), name="keys").data(list(keys)).cte()
    is_wanted = columns.user_id == pairs.c.user_id, columns.idempotency_key == pairs.c.idempotency_key
    users = {user_id for user_id, _ in keys}
    return statement.join(pairs, and_(*is_wanted)).where(
        columns.user_id.in_(users), columns.idempotency_key.is_not(None)
    )


async def request_hash(session: AsyncSession, key: Key) -> str | None:
    """Return the request hash of an archived key, or None."""
    own = ArchivedKey.user_id == key[0], ArchivedKey.idempotency_key == key[1]
    return await session.scalar(select(ArchivedKey.request_hash).where(*own))
