"""Detect databases whose tables are distributed or partitioned by user.

On such a database `user_id` of `messages` is `NOT NULL`, and every key begins with the user. On any other database, a
row of an earlier backend may still lack its user. Every new connection to PostgreSQL looks.
"""

from typing import Any

import asyncpg
from sqlalchemy import ColumnElement, SQLColumnExpression, or_, true
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncSession

_OWNED, _ON_CITUS = "foundation_owned", "foundation_on_citus"
_FIND = """
    SELECT attnotnull, to_regclass('pg_dist_partition') IS NOT NULL FROM pg_attribute
    WHERE attrelid = to_regclass('messages') AND attname = 'user_id'
"""


async def note(connection: asyncpg.Connection, dialect: Dialect) -> None:
    """Look, and store the result for all sessions of an engine."""
    found = await connection.fetch(_FIND)
    is_owned = bool(found) and found[0][0]
    setattr(dialect, _OWNED, is_owned)
    setattr(dialect, _ON_CITUS, is_owned and found[0][1])


def is_complete(session: AsyncSession) -> bool:
    """Return whether every row names its user."""
    return getattr(session.get_bind().dialect, _OWNED, False)


def is_on_citus(dialect: Dialect) -> bool:
    """Return whether Citus distributes the tables by user."""
    return getattr(dialect, _ON_CITUS, False)


def of_user(session: AsyncSession, column: SQLColumnExpression[Any], user_id: int | None) -> ColumnElement[bool]:
    """Match the rows of a user, and rows that lack their user.

    Without `user_id`, match all rows. The caller names the rows by another key, such as their conversation.
    """
    if user_id is None:
        return true()
    own = column == user_id
    return own if is_complete(session) else or_(own, column.is_(None))


def where_known(session: AsyncSession, column: SQLColumnExpression[Any], user_id: int | None) -> ColumnElement[bool]:
    """Match a user's rows where every row names its user, else all.

    For rows that an earlier backend may have stored under another user.
    """
    return column == user_id if user_id is not None and is_complete(session) else true()
