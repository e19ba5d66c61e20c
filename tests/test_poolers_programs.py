"""The product's programs behind PgBouncer: servers that start at once, the commands, and the migration script.

`STARTS=20 pytest tests/test_poolers_programs.py` starts the servers so many times for each pooler.
"""

import asyncio
import os
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from app import migrations, postgresql_connections
from tests import commands, launching, live_writers, old_databases, poolers, raw_sql
from tests.conftest import UrlOf
from tests.launching import Launcher
from tests.live_writers import Writers
from tests.old_databases import OldDatabase
from tests.test_migrate_token_data_killed import check_all
from tests.test_poolers import opened

STARTS = int(os.environ.get("STARTS", "1"))
SERVERS = 3
DEADLINE_SECONDS = 60


@pytest.fixture
def kind() -> str:
    """The only kind of database that has poolers."""
    return "postgresql"


@pytest.mark.parametrize(("mode", "size"), [("transaction", 2), ("transaction", 5), ("session", 10)])
def test_servers_that_start_at_once_all_come_up(postgresql: UrlOf, mode: str, size: int, tmp_path: Path) -> None:
    for number in range(STARTS):
        name = f"test_{uuid.uuid4().hex}"
        raw_sql.run(postgresql("postgres"), f"CREATE DATABASE {name}")
        if number % 2 == 0:
            old_databases.build(postgresql(name), 3, rows=100)
        with (
            poolers.running(postgresql(name), mode, size) as url,
            launching.launcher(url, tmp_path / "log") as launcher,
        ):
            start_servers(launcher)
            said = launcher.log.read_text()
            assert "Traceback" not in said, said
            assert "waiting" not in said, said
        assert raw_sql.run(postgresql(name), "SELECT version_num FROM alembic_version") == [(migrations.head(),)]
        raw_sql.run(postgresql("postgres"), f"DROP DATABASE {name} WITH (FORCE)")


def start_servers(launcher: Launcher) -> None:
    """Starts servers at once, waits until each is ready, and stops them."""
    ports = [str(commands.free_port()) for _ in range(SERVERS)]
    pids = [launcher.start("main.py", PORT=port) for port in ports]
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not all(is_ready(port) for port in ports):
            assert time.monotonic() < deadline, launcher.log.read_text()
            time.sleep(0.05)
    finally:
        for pid in pids:
            os.kill(pid, 9)
            launcher.wait(pid)


def is_ready(port: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_commands_work_through_a_pooler(empty_database_url: str, mode: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with poolers.running(empty_database_url, mode, size=2) as url, launching.launcher(url, log) as launcher:
        for command in ("create-service backend", "issue-key backend --label test", "list-keys", "revoke-key 1"):
            assert launcher.wait(launcher.start("main.py", *command.split())) == 0, log.read_text()
    assert raw_sql.value(empty_database_url, "SELECT count(*) FROM api_keys WHERE revoked_at IS NOT NULL") == 1


@pytest.mark.parametrize(
    ("mode", "size", "parameters", "said"),
    [
        ("transaction", 1, "", "raise its default_pool_size"),
        ("session", 1, "", "raise its default_pool_size"),
        ("statement", 20, "", "set the pooler's pool_mode to transaction"),
        ("transaction", 20, "?search_path=public", "take the parameter out of DATABASE_URL"),
    ],
    ids=["one transaction", "one session", "statement mode", "start-up parameter"],
)
def test_what_cannot_work_is_refused_in_one_line(
    empty_database_url: str, mode: str, size: int, parameters: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_connections, "POOLER_TIMEOUT_SECONDS", 0.5)
    with poolers.running(empty_database_url, mode, size) as url:
        outcome = commands.migrate(url + parameters)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1), outcome.err
    assert said in outcome.err


@pytest.fixture(params=[("transaction", 2), ("transaction", 5), ("session", 20)], ids=str)
def pooled_url(old: OldDatabase, request: pytest.FixtureRequest) -> Iterator[str]:
    """The old database through PgBouncer."""
    mode, size = request.param
    with poolers.running(old.url, mode, size) as url:
        yield url


@pytest.fixture
def old(empty_database_url: str) -> OldDatabase:
    """An old database, not adopted."""
    return old_databases.build(empty_database_url, 2, rows=400)


async def test_the_script_is_exact_through_a_pooler(old: OldDatabase, pooled_url: str, tmp_path: Path) -> None:
    await migrations.upgrade(pooled_url)
    with launching.launcher(pooled_url, tmp_path / "log") as launcher:

        async def run(*many: str) -> None:
            start = partial(launcher.start, "migrate_token_data.py", "--quiet", "--batch-size", "2")
            for pid in [start(*flags.split()) for flags in many]:
                assert await asyncio.to_thread(launcher.wait, pid) == 0, launcher.log.read_text()

        async with opened(pooled_url) as pooled, live_writers.writing(pooled, servers=2, reporters=1) as writers:
            await run("", "")
        await run("")
        await run("--dry-run")
        await run("--verify")
    async with opened(old.url) as direct:
        await check_all(old, Writers(direct, 0, writers.months, writers.records, writers.acknowledged))
