"""The log says where an unexpected error was raised, and hides its text."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.exc import IntegrityError

from app import BASE_DIR
from tests.support import programs
from tests.support.secret_marks import MARK, Captured, Format, app_settings, check, log_format, logged, upstream

__all__ = ["app_settings", "log_format", "logged", "upstream"]


class Odd(Exception):
    """An error whose text comes from nowhere else."""

    def __str__(self) -> str:
        return MARK


def noted(error: Exception) -> Exception:
    error.add_note(MARK)
    return error


def chained(error: BaseException, cause: BaseException | None, context: BaseException | None) -> BaseException:
    error.__cause__, error.__context__ = cause, context
    return error


def endless() -> BaseException:
    one, other = ValueError(MARK), KeyError(MARK)
    one.__context__, other.__context__ = other, one
    group = ExceptionGroup(MARK, [one, other])
    other.__cause__ = group
    return group


KINDS = (ValueError, KeyError, TypeError, RuntimeError, OSError, AssertionError, OverflowError, ConnectionError)
ERRORS: dict[str, Callable[[], BaseException]] = {
    **{kind.__name__: functools.partial(kind, MARK) for kind in KINDS},
    "SyntaxError": lambda: SyntaxError(MARK, (MARK, 1, 1, MARK)),
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", MARK.encode(), 0, 1, MARK),
    "Odd": Odd,
    "PostgresError": asyncpg.PostgresError,
    "IntegrityError": lambda: IntegrityError("INSERT", {"a": MARK}, Exception(MARK)),
    "noted": lambda: noted(ValueError(1)),
    "cause": lambda: chained(RuntimeError(MARK), ValueError(MARK), None),
    "context": lambda: chained(RuntimeError(MARK), None, KeyError(MARK)),
    "group": lambda: ExceptionGroup(MARK, [ValueError(MARK), ExceptionGroup(MARK, [KeyError(MARK)])]),
    "endless": endless,
    "long": lambda: long_chain(3000),
}


def long_chain(length: int) -> BaseException:
    error: BaseException = ValueError(MARK)
    for _ in range(length):
        error = chained(ValueError(MARK), None, error)
    return error


@pytest.mark.parametrize("log_format", ["text", "json"], indirect=True)
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_an_error_of_ours_shows_where_and_not_what(
    app: FastAPI, client: httpx.AsyncClient, logged: Captured
) -> None:
    async def fail(name: str) -> None:
        text = MARK
        raise ERRORS[name]() from (KeyError(text) if name == "ValueError" else None)

    app.add_api_route("/fail", fail)
    for name, make in ERRORS.items():
        assert (await client.get(f"/fail?name={name}")).status_code in (500, 503)
        error = make()
        logging.getLogger("other").warning("an argument %s, %r", error, error)
        logging.getLogger("other").warning("by name: %(error)s", {"error": error})
        logging.getLogger("other").error(error)
        check(logged(), type(error).__name__, "Traceback", __file__, "in fail")


OTHER_WAYS = """
import asyncio, gc, logging, sys, threading, warnings
sys.path.insert(0, sys.argv[1])
from app import logs
logs.configure("DEBUG", sys.argv[2])
mark = sys.argv[3]

async def fail():
    raise ValueError(mark)

class Finalized:
    def __init__(self):
        self.itself = self

    def __del__(self):
        raise KeyError(mark)

def run():
    raise TypeError(mark)

async def main():
    task = asyncio.create_task(fail(), name=mark)
    await asyncio.sleep(0)
    del task
    gc.collect()
    context = {"message": "odd", "future": mark, "exception": OSError(mark)}
    asyncio.get_running_loop().call_exception_handler(context)

asyncio.run(main())
Finalized()
gc.collect()
thread = threading.Thread(target=run, name=mark)
thread.start()
thread.join()
warnings.simplefilter("always")
for category in (UserWarning, RuntimeWarning, DeprecationWarning, ResourceWarning):
    warnings.warn("odd: " + mark, category)
logging.getLogger("x").warning("%d", mark)
try:
    int(mark)
except ValueError:
    raise LookupError(mark)
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_tasks_threads_finalizers_and_warnings_write_nothing(log_format: Format, tmp_path: Path) -> None:
    ended = programs.run(["-c", OTHER_WAYS, BASE_DIR, log_format, MARK], tmp_path, {})
    kinds = ("ValueError", "KeyError", "TypeError", "OSError", "LookupError")
    warned = ("UserWarning", "RuntimeWarning", "DeprecationWarning", "ResourceWarning")
    check(ended.out + ended.err, "never retrieved", "in run", "in fail", "Finalized.__del__", *kinds, *warned)
    assert ended.code == 1
