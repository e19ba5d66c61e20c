"""`migrate_token_data.py` as processes: killed at random moments, twice at once, and beside those who write and read.

`KILLS=100 pytest tests/test_migrate_token_data_killed.py` kills it so many times for each kind of database.
"""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from random import Random

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import Database
from services import token_usage
from services.token_usage import Entry, Usage
from tests import commands, crash_driver, invariants, launching, months_over_http, old_databases
from tests.launching import Launcher
from tests.old_databases import USERS, OldDatabase

logger = logging.getLogger(__name__)

KILLS = int(os.environ.get("KILLS", "20"))
SEED = 20241130
SCRIPT = ("migrate_token_data.py", "--quiet", "--batch-size", "2")
TOGETHER = 3
OLD_ROWS = 200
"""So many messages an old process writes before each run."""
ADOPTING_SECONDS, COUNTING_SECONDS = 0.8, 0.15
MONTHS = [datetime(2024, month, 28, tzinfo=UTC) for month in (2, 3, 4)]
USAGE = Usage(input_tokens=7, output_tokens=3, cost=Decimal("0.0000000003"))
OWNED_BY_NOBODY = """
    SELECT count(*) FROM messages AS m LEFT JOIN conversations AS c ON c.id = m.conversation_id
    LEFT JOIN users AS u ON u.id = c.user_id WHERE m.user_id IS NULL AND u.id IS NULL
"""
NOT_COUNTED = "SELECT id FROM messages WHERE role = 'assistant' AND input_tokens IS NOT NULL AND usage_date IS NULL"
NOT_ADOPTED = "SELECT count(*) FROM messages WHERE user_id IS NULL"
WRITTEN_BY_AN_OLD_PROCESS = f"""
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {OLD_ROWS})
    INSERT INTO messages (conversation_id, role, content, created_at, input_tokens, output_tokens)
    SELECT c.id, 'assistant', 'old', '2024-02-15 00:00:00+00:00', i, 3 FROM n, (
        SELECT min(id) AS id FROM conversations WHERE user_id = {USERS[0]}
    ) AS c
"""
DAMAGE = (
    "DELETE FROM user_monthly_token_usage WHERE (user_id + month) % 3 = 0",
    "UPDATE user_monthly_token_usage SET message_count = message_count + 5 WHERE (user_id + month) % 3 = 1",
    "DELETE FROM user_daily_token_usage WHERE user_id % 2 = 0",
    "UPDATE conversation_daily_token_usage SET input_tokens = 0 WHERE user_id % 3 = 0",
)


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


async def execute(database: Database, *statements: str) -> None:
    async def work(session: AsyncSession) -> None:
        for statement in statements:
            await session.execute(text(statement))

    await database.transaction(work)


async def number(database: Database, statement: str) -> int:
    async with database.reads() as session:
        return int((await session.execute(text(statement))).scalar_one())


@contextlib.asynccontextmanager
async def writing(database: Database, writers: int = 4) -> AsyncIterator[Counter[str]]:
    """Writers who store messages of a few months all the time; counts what was acknowledged."""
    acknowledged: Counter[str] = Counter()
    stopped = False

    async def write(random: Random) -> None:
        while not stopped:
            owner, at = random.choice(USERS[:3]), random.choice(MONTHS)
            entry = Entry(user_id=owner, role="assistant", created_at=at, usage=USAGE)
            await database.transaction(functools.partial(token_usage.record, entry=entry, zone=UTC))
            acknowledged["written"] += 1
            await asyncio.sleep(random.uniform(0, 0.02))

    async with asyncio.TaskGroup() as group:
        for i in range(writers):
            group.create_task(write(Random(i)))
        yield acknowledged
        stopped = True


async def check(database: Database) -> Mapping[invariants.UserMonth, invariants.Totals]:
    """Demands that the rollups equal the ledger; how much must be in it, the test knows."""
    async with database.reads() as session:
        not_counted = (await session.execute(text(NOT_COUNTED))).scalars().all()
    return await invariants.check(database, skipped=set(not_counted))


async def finish(launcher: Launcher, pid: int) -> int:
    return await asyncio.to_thread(launcher.wait, pid)


async def killed(launcher: Launcher, database: Database, random: Random) -> bool:
    """One life of the script, half the time until it has adopted all; whether it was killed before its end."""
    pid = launcher.start(*SCRIPT)
    if random.random() < 0.5:
        await crash_driver.until(lambda: is_adopted(database), "all is adopted")
        await asyncio.sleep(random.uniform(0, COUNTING_SECONDS))
    else:
        await asyncio.sleep(random.uniform(0, ADOPTING_SECONDS))
    os.kill(pid, signal.SIGKILL)  # not buried yet, so that this is no other process
    code = await finish(launcher, pid)
    assert code in (0, -signal.SIGKILL), "it ended by itself, and not well"
    return code != 0


async def is_adopted(database: Database) -> bool:
    return await number(database, NOT_ADOPTED) == await number(database, OWNED_BY_NOBODY)


async def summary(url: str, *flags: str) -> dict[str, int]:
    outcome = await asyncio.to_thread(commands.migrate, url, "--json", "--quiet", *flags)
    found: dict[str, int] = outcome.summary
    return found


async def test_a_script_that_is_killed_again_and_again_beside_writers_is_exact_in_the_end_and_does_nothing_twice(
    old: OldDatabase, database: Database, tmp_path: Path
) -> None:
    random, began, moments = Random(SEED), time.monotonic(), Counter[str]()
    log = tmp_path / "script.log"
    with launching.launcher(old.url, log) as launcher:
        assert await finish(launcher, launcher.start(*SCRIPT, "--user", "999999")) == 0, "the schema"
        async with writing(database) as acknowledged:
            for _ in range(KILLS):
                await execute(database, WRITTEN_BY_AN_OLD_PROCESS, *DAMAGE)
                before = await number(database, NOT_ADOPTED)
                was_killed = await killed(launcher, database, random)
                after = await number(database, NOT_ADOPTED)
                assert after <= before, "what was adopted is not adopted any more"
                moments[moment(before, after, await number(database, OWNED_BY_NOBODY)) if was_killed else "never"] += 1
            would = await summary(old.url, "--dry-run")
            done = await summary(old.url)
            assert (done["created"], done["updated"]) == (would["created"], would["updated"])
    assert (await summary(old.url))["updated"] == 0
    assert (await asyncio.to_thread(commands.migrate, old.url, "--verify", "--quiet")).code == 0
    counted = sum(totals.message_count for totals in (await check(database)).values())
    in_old = sum(month.messages for month in old.months().values())
    assert counted == in_old + acknowledged["written"] + KILLS * OLD_ROWS
    assert {"adopting", "counting"} <= moments.keys(), moments
    assert "Traceback" not in log.read_text(), log.read_text()[-5000:]
    logger.info("%d kills in %.0f s; %s; %s", KILLS, time.monotonic() - began, moments, acknowledged)


def moment(before: int, after: int, at_last: int) -> str:
    """When it was killed, by how many rows were not adopted."""
    if after == before:
        return "before adopting"
    return "adopting" if after > at_last else "counting"


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_script_that_overwrote_months_with_what_it_read_would_be_found_out(
    old: OldDatabase, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite nobody can write between its reading and its writing."""
    monkeypatch.setenv(launching.OVERWRITING, "yes")
    with launching.launcher(old.url, tmp_path / "script.log") as launcher:
        assert await finish(launcher, launcher.start(*SCRIPT)) == 0
        found_out = False
        async with writing(database, writers=8):
            for _ in range(60):
                await execute(database, *DAMAGE)
                assert await finish(launcher, launcher.start(*SCRIPT)) == 0
                differing = await summary(old.url, "--dry-run")
                if differing["created"] + differing["updated"]:
                    found_out = True
                    break
    assert found_out
    with pytest.raises(AssertionError, match="the rollup has"):
        await check(database)


async def test_two_scripts_that_are_started_together_count_once(
    old: OldDatabase, database: Database, tmp_path: Path
) -> None:
    with launching.launcher(old.url, tmp_path / "script.log") as launcher:
        for _ in range(TOGETHER):
            both = [launcher.start(*SCRIPT) for _ in range(2)]
            assert [await finish(launcher, pid) for pid in both] == [0, 0]
            assert await asyncio.to_thread(old_databases.rollup, old.url) == old.months()
            await check(database)
            await execute(database, *DAMAGE)


def test_an_old_database_is_adopted_while_the_server_answers_without_an_error(old: OldDatabase, tmp_path: Path) -> None:
    with commands.server(old.url, tmp_path, LOG_LEVEL="WARNING") as address:  # a line each would fill the pipe
        answers = asyncio.run(read_during_a_run(address, old.url, tmp_path))
        assert months_over_http.from_server(address) == months_over_http.expected(old)
    assert len(answers) > 10
    assert {answer.status_code for answer in answers} == {200}
    seen = [
        sum(month["message_count"] for month in answer.json()["token_stats"]["monthly_stats"]) for answer in answers
    ]
    assert seen == sorted(seen), "what was counted once stays counted"


async def read_during_a_run(address: str, url: str, directory: Path) -> Sequence[httpx.Response]:
    async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as client:
        name = old_databases.username(USERS[0])
        body = {"username": name, "password": old_databases.PASSWORD}
        token = (await client.post("/auth/login", json=body)).json()["access_token"]
        script = commands.start(["migrate_token_data.py", "--json"], directory, DATABASE_URL=url)
        run = asyncio.create_task(asyncio.to_thread(commands.finish, script))
        answers = []
        while not run.done():
            headers = {"Authorization": f"Bearer {token}"}
            answers.append(await client.get("/auth/me", params={"limit": 36}, headers=headers))
    assert run.result().code == 0
    return answers
