"""The product's programs behind poolers: servers that start at once, the commands, and the migration script.

`STARTS=20 pytest tests/system/test_poolers_programs.py` starts servers 20 times, and tries more sizes of pools.
"""

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Iterator

import httpx
import pytest

from app.db import migrations, postgresql_connections, revisions
from tests.conftest import UrlOf
from tests.support import commands, launching, live_writers, old_databases, poolers, raw_sql
from tests.support.launching import Launcher
from tests.support.live_writers import Writers, check_all
from tests.support.poolers import opened

pytestmark = pytest.mark.long

STARTS = int(os.environ.get("STARTS", "1"))
SERVERS = 3
DEADLINE_SECONDS = 60
POOLS = [("transaction", 2), ("session", 12)]
if STARTS > 1:
    POOLS += [("transaction", 5), ("tracked", 5)]


@pytest.fixture
def kind() -> str:
    """The only kind of database that has poolers."""
    return "postgresql"


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """From which the programs are forked."""
    with launching.launcher("sqlite://", tmp_path_factory.mktemp("launcher") / "log") as launcher:
        yield launcher
        said = launcher.log.read_text()
        assert "Traceback" not in said, said


@pytest.mark.parametrize(("mode", "size"), POOLS)
def test_servers_that_start_at_once_all_come_up(postgresql: UrlOf, launcher: Launcher, mode: str, size: int) -> None:
    for number in range(STARTS):
        name = f"test_{uuid.uuid4().hex}"
        raw_sql.run(postgresql("postgres"), f"CREATE DATABASE {name}")
        if number % 2 == 0:
            old_databases.build(postgresql(name), 3, rows=50)
        with poolers.running(postgresql(name), mode, size) as url:
            start_servers(launcher, url)
        assert raw_sql.run(postgresql(name), "SELECT version_num FROM alembic_version") == [(revisions.head(),)]
        raw_sql.run(postgresql("postgres"), f"DROP DATABASE {name} WITH (FORCE)")


def start_servers(launcher: Launcher, url: str) -> None:
    """Starts servers at once, waits until each is ready, and stops them."""
    ports = [str(commands.free_port()) for _ in range(SERVERS)]
    pids = [launcher.start("main.py", DATABASE_URL=url, PORT=port) for port in ports]
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not all(is_ready(port) for port in ports):
            assert time.monotonic() < deadline, launcher.log.read_text()
            time.sleep(0.05)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)  # not buried yet, so that this is no other process
            launcher.wait(pid)


def is_ready(port: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_the_commands_work_through_a_pooler(empty_database_url: str, launcher: Launcher) -> None:
    with poolers.running(empty_database_url, "transaction", size=2) as url:
        for command in ("create-service backend", "issue-key backend --label test", "list-keys", "revoke-key 1"):
            pid = launcher.start("main.py", *command.split(), DATABASE_URL=url)
            assert launcher.wait(pid) == 0, launcher.log.read_text()
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


@pytest.mark.parametrize(("mode", "size"), POOLS if STARTS > 1 else POOLS[:1])
async def test_the_script_is_exact_through_a_pooler(
    empty_database_url: str, launcher: Launcher, mode: str, size: int
) -> None:
    old = await asyncio.to_thread(old_databases.build, empty_database_url, 2, rows=200)
    with poolers.running(old.url, mode, size) as url:

        async def run(*many: str) -> None:
            command = ["migrate_token_data.py", "--quiet", "--batch-size", "2"]
            for pid in [launcher.start(*command, *flags.split(), DATABASE_URL=url) for flags in many]:
                assert await asyncio.to_thread(launcher.wait, pid) == 0, launcher.log.read_text()

        await run("--dry-run")  # of an old schema
        await migrations.upgrade(url)
        async with opened(url) as pooled, live_writers.writing(pooled, servers=2, reporters=1) as writers:
            await run("", "")
        await run("")
        await run("--verify")
    async with opened(old.url) as direct:
        await check_all(old, Writers(direct, 0, writers.months, writers.records, writers.acknowledged))
