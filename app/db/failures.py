"""Classify, describe and log database failures."""

import logging
import re
import sqlite3

import asyncpg
from asyncpg.exceptions import ClientConfigurationError, InvalidCachedStatementError
from sqlalchemy.exc import DBAPIError, EmulatedDBAPIException, IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import DatabaseUnavailable, TransactionConflict

# PostgreSQL's SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html
_CONFLICT_STATES = frozenset({"40001", "40P01", "55P03"})
_DISCONNECTS = ("08", "57P")
_UNAVAILABLE_CLASSES = frozenset({"08", "28", "3D", "53", "57", "58"})
_DATA_CLASSES = ("22", "0A")  # 0A covers infinite dates, among others
_READ_ONLY = "25006"  # a standby, or a provider's answer to a full disk
# A prepared statement that belongs to another client or session of a pooler.
FOREIGN_STATEMENT = frozenset({"42P05", "26000"})
_CLOSED = "55000"  # ALLOW_CONNECTIONS false, with which operators close a database for maintenance
# Classes whose messages contain names and settings, but no value of a row. Messages of 22 (data) and P0 (PL/pgSQL) may.
_STATIC_CLASSES = frozenset({"08", "23", "40", "53", "55", "57", "58"})
# Classes whose messages quote the statement; a database function may have built it from values.
_QUOTING_CLASSES = frozenset({"0A", "21", "25", "26", "28", "34", "3D", "3F", "42", "44", "54"})
# The server's routines that raise a message of a database function.
_RAISED = frozenset({"exec_stmt_raise", "exec_stmt_assert"})
_UNQUOTED = re.compile(r"[\w ,()-]+")
_FUNCTION = re.compile(r"^PL/pgSQL function ([\w.]+)\([^)]*\) line (\d+)", re.MULTILINE)
_QUOTE = re.compile(r"[\"'\[:]")
# The beginnings of messages about failed connections.
_OF_CONNECTING = ("Multiple exceptions: [Errno ", "PostgreSQL server at ", "unexpected connection_lost() call")
_BUSY_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

# InternalClientError: the server has announced that it closes the connection, but the socket is still open.
_BROKEN = (asyncpg.InterfaceError, asyncpg.InternalClientError)

FAILURES = (SQLAlchemyError, sqlite3.Error, asyncpg.PostgresError, *_BROKEN, OSError, TimeoutError)
"""Errors that are raised when a database is missing, refuses, or closes the connection."""


class PoolerTimeout(PoolTimeout):
    """Report that a pooler assigned no server connection within `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the connection pooler had no server connection free within {seconds:g} s: raise its default_pool_size,"
            " or check whether it reaches the server"
        )


_ADVICE = {
    "unsupported startup parameter": "take the parameter out of DATABASE_URL, and use ALTER ROLE … SET instead",
    'prepared statement "': "the pooler keeps no prepared statements: leave DATABASE_PREPARED_STATEMENTS empty",
    "transaction blocks not allowed in statement pooling mode": "set the pooler's pool_mode to transaction",
    "unable to open database file": "its directory must exist and be writable, even for reading, because SQLite keeps"
    " -wal and -shm beside the file: copy all of them to such a directory",
    **dict.fromkeys(("used by a view or rule", "error in view "), "drop the view, and create it again afterwards"),
}
"""The remedy for each refusal of a pooler or a database, by a part of its message."""


def is_transient(error: BaseException) -> bool:
    """Return whether a retry of the whole transaction may succeed."""
    return is_conflict(error) or is_disconnect(error)


def is_conflict(error: BaseException) -> bool:
    """Return whether another transaction caused this one to roll back.

    It may have changed the type of a column that a prepared statement selects.
    """
    if isinstance(error, TransactionConflict) or isinstance(driver_error(error), InvalidCachedStatementError):
        return True
    return _sqlstate(error) in _CONFLICT_STATES or _sqlite_code(error) in _BUSY_CODES


def is_disconnect(error: BaseException) -> bool:
    """Return whether the connection was lost or refused, as during a restart."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, _BROKEN) or isinstance(getattr(cause, "__cause__", None), _BROKEN):
        return True
    return isinstance(error, OSError) or (_sqlstate(error) or "").startswith(_DISCONNECTS)


def is_read_only(error: BaseException) -> bool:
    """Return whether the server refuses writes, as a standby does."""
    return _sqlstate(error) == _READ_ONLY


def is_of_data(error: BaseException) -> bool:
    """Return whether stored data caused the failure.

    Such as a sum that exceeds its type, or a value that Python cannot read.
    """
    if isinstance(error, ValueError | TypeError | ArithmeticError):
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.OperationalError) and "overflow" in str(cause):
        return True
    return (_sqlstate(error) or "").startswith(_DATA_CLASSES) and not is_conflict(error)


def is_unavailable(error: BaseException) -> bool:
    """Return whether the database, not the code, caused the failure.

    It may be missing, restarting, full, locked, or out of connections.
    """
    if (
        isinstance(error, PoolTimeout | DatabaseUnavailable)
        or is_conflict(error)
        or is_disconnect(error)
        or is_read_only(error)
    ):
        return True
    state = _sqlstate(error) or ""
    if state == _CLOSED or state in FOREIGN_STATEMENT or state[:2] in _UNAVAILABLE_CLASSES:
        return True
    return _sqlite_code(error) is not None


def log(logger: logging.Logger, what: str, error: Exception) -> None:
    """Log an error of repeated work.

    The traceback is left out if the database caused it: during an outage the work fails again and again.
    """
    if is_unavailable(error):
        logger.error("%s: %s", what, describe(error))
    else:
        logger.error("%s", what, exc_info=error)


def constraint_of(error: IntegrityError) -> str:
    """Return the violated constraint's name; on SQLite its columns, such as `users.email`."""
    if isinstance(error.orig, sqlite3.IntegrityError):
        return str(error.orig).partition("failed: ")[2]
    return str(getattr(error.driver_exception, "constraint_name", None) or "")


def _sqlstate(error: BaseException) -> str | None:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return getattr(cause, "sqlstate", None)


def _sqlite_code(error: BaseException) -> int | None:
    """Return the primary code of a SQLite error about the file."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, sqlite3.OperationalError):
        return None
    code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return None if code == sqlite3.SQLITE_ERROR else code


def describe(error: BaseException) -> str:
    """Describe a failure in one line, without SQL, secrets or user data."""
    if isinstance(error, ArithmeticError):  # its text contains only figures
        return " ".join(str(error).split()) or type(error).__name__
    said = safe_text(error) or type(driver_error(error)).__name__
    return "; ".join([said, *(advice for part, advice in _ADVICE.items() if part in said)])


def safe_text(error: BaseException) -> str | None:
    """Return one safe line; None if the text may contain user data.

    PostgreSQL's DETAIL, HINT and CONTEXT quote rows and parameters, and so do some of its messages. A database function
    can raise any text, with any SQLSTATE and any names.
    """
    cause = driver_error(error)
    if isinstance(cause, PoolerTimeout):
        return str(cause)
    if isinstance(cause, PoolTimeout):
        return "no connection of the pool was free in time"
    if isinstance(cause, asyncpg.PostgresError):
        return _postgresql_text(cause)
    if isinstance(cause, sqlite3.Error):
        return _sqlite_text(cause)
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    if isinstance(cause, ClientConfigurationError) or (
        isinstance(cause, _BROKEN) and not isinstance(cause, ValueError)
    ):
        return _one_line(str(cause.args[0])) if cause.args else None  # ValueErrors quote parameters
    return _system_text(cause) if isinstance(cause, OSError) else None


def driver_error(error: BaseException) -> BaseException:
    """Return the driver's error, without SQLAlchemy's wrapper."""
    if isinstance(error, StatementError) and error.orig is not None:
        error = error.orig
    if isinstance(error, EmulatedDBAPIException):
        return error.orig or error.__cause__ or error
    return error


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _postgresql_text(error: asyncpg.PostgresError) -> str:
    state = error.sqlstate or ""
    facts = [type(error).__name__, f"SQLSTATE {state}"]
    own = error.server_source_function not in _RAISED
    if own:
        names = {"constraint": error.constraint_name, "table": error.table_name, "column": error.column_name}
        facts += [f"{what} {name}" for what, name in names.items() if name]
    facts += [f"in function {name} line {line}" for name, line in _FUNCTION.findall(error.context or "")[:1]]
    text = f"({', '.join(facts)})"
    message = _one_line(str(error.args[0])) if error.args else ""
    return f"{message} {text}" if message and own and _is_without_values(error, message, state[:2]) else text


def _is_without_values(error: asyncpg.PostgresError, message: str, state_class: str) -> bool:
    if state_class == "22":
        return _UNQUOTED.fullmatch(message) is not None
    return state_class in _STATIC_CLASSES or (state_class in _QUOTING_CLASSES and error.context is None)


def _sqlite_text(error: sqlite3.Error) -> str | None:
    name = getattr(error, "sqlite_errorname", None)
    if name is None:  # an error of the driver, not of SQLite: it may quote a value
        return None
    if name == "SQLITE_CONSTRAINT_TRIGGER":  # RAISE accepts any text
        return f"({name})"
    text = str(error) if name != "SQLITE_ERROR" else _QUOTE.split(str(error))[0]
    return f"{_one_line(text)} ({name})"


def _system_text(error: OSError) -> str | None:
    text = str(error)
    if text.startswith(_OF_CONNECTING):
        return _one_line(text)
    return f"[Errno {error.errno}] {error.strerror}" if error.errno is not None else None
