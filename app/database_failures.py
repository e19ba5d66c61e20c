"""What goes wrong with databases: which failures pass when tried again, and which are the database's own."""

import sqlite3

import asyncpg
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import TransactionConflict

# PostgreSQL's SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html
_CONFLICT_STATES = frozenset({"40001", "40P01", "55P03"})
_DISCONNECTS = ("08", "57P")
_UNAVAILABLE_CLASSES = frozenset({"08", "28", "3D", "53", "57", "58"})
_DATA_CLASSES = ("22", "0A")  # the second also of infinite dates
_CLOSED = "55000"  # ALLOW_CONNECTIONS false: how operators keep everybody out for maintenance
_BUSY_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

# InternalClientError: the server has said that it ends the connection, whose end was not seen yet.
_BROKEN = (asyncpg.InterfaceError, asyncpg.InternalClientError)

FAILURES = (SQLAlchemyError, sqlite3.Error, asyncpg.PostgresError, *_BROKEN, OSError, TimeoutError)
"""What can be raised when a database is absent, refuses, or breaks off."""


class PoolerTimeout(PoolTimeout):
    """A pooler such as PgBouncer assigned no session of the server within `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the connection pooler had no server connection free within {seconds:g} s: raise its default_pool_size,"
            " or see whether it reaches the server"
        )


_ADVICE = {
    "unsupported startup parameter": "take the parameter out of DATABASE_URL, and use ALTER ROLE … SET instead",
    "transaction blocks not allowed in statement pooling mode": "set the pooler's pool_mode to transaction",
}
"""What to do about what poolers refuse, by a part of PgBouncer's message."""


def is_transient(error: BaseException) -> bool:
    """Whether the same transaction may well succeed when all of it is tried again."""
    return is_conflict(error) or is_disconnect(error)


def is_conflict(error: BaseException) -> bool:
    """Whether another transaction stood in the way; this one was rolled back, and may be tried again."""
    if isinstance(error, TransactionConflict):
        return True
    return _sqlstate(error) in _CONFLICT_STATES or _sqlite_code(error) in _BUSY_CODES


def is_disconnect(error: BaseException) -> bool:
    """Whether the connection was lost or refused, as while a database is restarted."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, _BROKEN) or isinstance(getattr(cause, "__cause__", None), _BROKEN):
        return True
    return isinstance(error, OSError) or (_sqlstate(error) or "").startswith(_DISCONNECTS)


def is_of_data(error: BaseException) -> bool:
    """Whether what is stored is the reason: a sum that no type holds, or a value that Python cannot read."""
    if isinstance(error, ValueError | TypeError | ArithmeticError):
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.OperationalError) and "overflow" in str(cause):
        return True
    return (_sqlstate(error) or "").startswith(_DATA_CLASSES)


def is_unavailable(error: BaseException) -> bool:
    """Whether the database, not the code, is the reason: absent, restarting, full, locked, or out of connections."""
    if isinstance(error, PoolTimeout) or is_conflict(error) or is_disconnect(error):
        return True
    state = _sqlstate(error) or ""
    return state == _CLOSED or state[:2] in _UNAVAILABLE_CLASSES or _sqlite_code(error) is not None


def constraint_of(error: IntegrityError) -> str:
    """Return the name of the constraint that a row violated; on SQLite its columns, such as `users.email`."""
    if isinstance(error.orig, sqlite3.IntegrityError):
        return str(error.orig).partition("failed: ")[2]
    return str(getattr(error.driver_exception, "constraint_name", None) or "")


def _sqlstate(error: BaseException) -> str | None:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return getattr(cause, "sqlstate", None)


def _sqlite_code(error: BaseException) -> int | None:
    """The primary code of an error of SQLite's that is about the database file rather than about the statement."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, sqlite3.OperationalError):
        return None
    code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return None if code == sqlite3.SQLITE_ERROR else code


def describe(error: BaseException) -> str:
    """What went wrong, in one line, without SQL and without secrets."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    if isinstance(error, PoolTimeout) and not isinstance(error, PoolerTimeout):
        return "no connection of the pool became free in time"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    said = " ".join(str(error).split()) or type(error).__name__
    return "; ".join([said, *(advice for part, advice in _ADVICE.items() if part in said)])
