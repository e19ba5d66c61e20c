"""Old databases that tests begin with: each is built once in a process, and copied for every test."""

import asyncio
import contextlib
import copy
import dataclasses
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import commands, old_databases, shared_databases
from tests.support.old_databases import OldDatabase

UrlOf = Callable[[str], str]
OldCopy = Callable[..., OldDatabase]


class Templates:
    """Old databases that no test changes."""

    def __init__(self, directory: Path, url_of: UrlOf) -> None:
        self._directory, self.url_of = directory, url_of
        self._built: dict[tuple[object, ...], OldDatabase] = {}

    def built(self, kind: str, generation: int, rows: int, *run: str, time_zone: bool) -> OldDatabase:
        """Return the database of these properties, which is built at the first call."""
        key = (kind, generation, rows, run, time_zone)
        if key not in self._built:
            old = old_databases.build(self._empty(kind), generation, rows=rows, time_zone=time_zone)
            if run:
                outcome = commands.migrate(old.url, *run)
                assert outcome.code == 0, outcome.err
            self._built[key] = old
        return self._built[key]

    def _empty(self, kind: str) -> str:
        name = f"old_{uuid.uuid4().hex}"
        if kind == "sqlite":
            return f"sqlite:///{self._directory / name}"
        asyncio.run(shared_databases.execute(self.url_of("postgres"), shared_databases.creation_of(name, "template1")))
        return self.url_of(name)


@pytest.fixture(scope="session")
def old_templates(tmp_path_factory: pytest.TempPathFactory, postgresql: UrlOf) -> Templates:
    """The databases that are copied."""
    return Templates(tmp_path_factory.mktemp("old"), postgresql)


@pytest.fixture
def old_copy(old_templates: Templates, kind: str, tmp_path: Path) -> Iterator[OldCopy]:
    """What makes a database like `old_databases.build`, and runs the script on it if flags are given."""
    with contextlib.ExitStack() as copies:

        def make(generation: int, *run: str, rows: int = 100, time_zone: bool = True) -> OldDatabase:
            old = copy.deepcopy(old_templates.built(kind, generation, rows, *run, time_zone=time_zone))
            if kind == "sqlite":
                path = shutil.copy(old.url.removeprefix("sqlite:///"), tmp_path / f"{uuid.uuid4().hex}.db")
                return dataclasses.replace(old, url=f"sqlite:///{path}")
            name = old.url.partition("?")[0].rpartition("/")[2]
            return dataclasses.replace(
                old, url=copies.enter_context(shared_databases.copied(old_templates.url_of, name))
            )

        yield make
