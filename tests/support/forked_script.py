"""An old database and the script, forked again and again: fixtures of the tests that disturb or kill it."""

from collections.abc import AsyncIterator, Iterator

import pytest

from app.db.database import Database
from tests.support import launching, old_databases
from tests.support.launching import Launcher
from tests.support.old_databases import OldDatabase


@pytest.fixture
def old(empty_database_url: str) -> OldDatabase:
    """An old database, not adopted."""
    return old_databases.build(empty_database_url, 2, rows=400)


@pytest.fixture
async def database(old: OldDatabase) -> AsyncIterator[Database]:
    """The same, open."""
    opened = Database.open(old.url)
    yield opened
    await opened.close()


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """The process from which the script is forked; it takes small steps there, so that there are many moments.

    Its first seconds, in which it imports everything, are the longest part of most of these tests.
    """
    with launching.launcher("sqlite://", tmp_path_factory.mktemp("launcher") / "log") as launcher:
        yield launcher
