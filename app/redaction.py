"""Redact errors, whose text may contain user data.

The record factory and the hooks of `app.logs` redact every error that is logged, or that ends a thread or a process.
"""

from pathlib import Path
from traceback import walk_tb
from types import TracebackType

from sqlalchemy.exc import StatementError

from app import BASE_DIR
from app.db import failures
from app.errors import ConfigurationError

HIDDEN = "(text hidden: it may hold user data)"

# Characters of a statement.
_MAX_STATEMENT = 2_000
# Errors in one chain; of a longer chain only the newest are logged.
_MAX_CHAIN = 100


def redacted(error: BaseException) -> BaseException:
    """Build a stand-in: same class names, tracebacks and chain, safe texts.

    The stand-in has a class of its own, so that no attribute, note or `repr` of the original is copied.
    """
    chain = _chain_of(error)
    made: dict[int, BaseException] = {}
    for one in reversed(chain):  # the members of a group before the group
        made[id(one)] = _stand_in(one, made)
    for one in chain:
        stand_in = made[id(one)]
        stand_in.__cause__ = made.get(id(one.__cause__))
        stand_in.__context__ = made.get(id(one.__context__))
        stand_in.__suppress_context__ = one.__suppress_context__
        stand_in.__traceback__ = one.__traceback__
    return made[id(error)]


def text_of(error: BaseException) -> str:
    """Return the part of an error's text that cannot contain user data."""
    if isinstance(error, ConfigurationError):
        return str(error)
    if isinstance(error, StatementError):
        statement = " ".join((error.statement or "").split())[:_MAX_STATEMENT]
        return f"{failures.safe_text(error) or HIDDEN} [SQL: {statement}]"
    status = getattr(error, "status_code", None)
    if type(status) is int:
        return f"status {status} {HIDDEN}"
    return failures.safe_text(error) or (HIDDEN if error.args else "")


def one_line(error: BaseException) -> str:
    """Describe an unexpected error, with its path through the product's files."""
    way = [f"{path}:{line}" for path, line in _own_lines(error.__traceback__)]
    return f"unexpected {type(error).__name__} at {' > '.join(way)}: {text_of(error)}".rstrip(": ")


def _own_lines(traceback: TracebackType | None) -> list[tuple[Path, int]]:
    lines = ((Path(frame.f_code.co_filename), line) for frame, line in walk_tb(traceback))
    own = ((path, line) for path, line in lines if "site-packages" not in path.parts and path.is_relative_to(BASE_DIR))
    return [(path.relative_to(BASE_DIR), line) for path, line in own]


def _chain_of(error: BaseException) -> list[BaseException]:
    """Return all errors that a traceback would show, the given one first."""
    found = {id(error): error}
    pending = [error]
    while pending and len(found) < _MAX_CHAIN:
        one = pending.pop(0)
        members = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        for other in (*members, one.__cause__, one.__context__):
            if other is not None and id(other) not in found:
                found[id(other)] = other
                pending.append(other)
    return list(found.values())


def _stand_in(error: BaseException, made: dict[int, BaseException]) -> BaseException:
    if isinstance(error, BaseExceptionGroup):
        members = [made[id(member)] for member in error.exceptions if id(member) in made]
        if members:
            return BaseExceptionGroup(HIDDEN, members)
    kind, text = type(error), text_of(error)
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    namesake: type[Exception] = type(kind.__name__, (Exception,), names)
    return namesake(text) if text else namesake()
