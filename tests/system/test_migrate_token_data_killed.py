"""`migrate_token_data.py` as processes: killed at random moments, twice at once, and beside those who write and read.

`KILLS=100 pytest tests/system/test_migrate_token_data_killed.py` kills it 100 times for each kind of database.
"""

import asyncio
import json
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from app.db.database import Database
from tests.support import commands, crash_driver, invariants, live_writers, months_over_http, old_databases
from tests.support.forked_script import database, launcher, old
from tests.support.invariants import UserMonth
from tests.support.launching import Launcher
from tests.support.live_writers import NOT_COUNTED, Writers, check, check_all, execute, ids
from tests.support.old_databases import USERS, OldDatabase

__all__ = ["database", "launcher", "old"]

pytestmark = pytest.mark.long

logger = logging.getLogger(__name__)

KILLS = int(os.environ.get("KILLS", "12"))
SEED = 20241130
TOGETHER = 2
MOST_RUNS = 20
"""The first is wrong nearly always."""
OLD_ROWS = 100
"""So many messages of each of two users an old process writes before each run, besides those meanwhile."""
MOMENTS = {"counting": 0.15, "adopting": 0.03, "any": 0.5}
"""So many seconds, at the most, after it has begun with that, or was started, the script is killed."""
WAITING = "SELECT id, role, input_tokens FROM messages WHERE user_id IS NULL"
OWNED_BY_NOBODY = """
    SELECT m.id FROM messages AS m LEFT JOIN conversations AS c ON c.id = m.conversation_id
    LEFT JOIN users AS u ON u.id = c.user_id WHERE m.user_id IS NULL AND u.id IS NULL
"""
DAMAGE = (  # in the order in which writers lock
    "UPDATE user_daily_token_usage SET output_tokens = 0 WHERE user_id % 3 = 0",
    "DELETE FROM user_daily_token_usage WHERE user_id % 2 = 0",
    "DELETE FROM user_monthly_token_usage WHERE (user_id + month) % 3 = 0",
    "UPDATE user_monthly_token_usage SET message_count = message_count + 5 WHERE (user_id + month) % 3 = 1",
)


@pytest.fixture
def script(launcher: Launcher, old: OldDatabase) -> Iterator["Script"]:
    """The script on the old database; nothing may surprise it."""
    script = Script(launcher, old.url)
    yield script
    assert "Traceback" not in script.said(), script.said()[-5000:]


class Script:
    """The script as processes, and what they said."""

    def __init__(self, launcher: Launcher, url: str) -> None:
        self._launcher = launcher
        self._flags = ("--database-url", url, "--quiet", "--json", "--batch-size", "2")
        self.overwriting = False
        self._said_before = len(launcher.log.read_text())

    def start(self, *flags: str) -> int:
        """The id of the process."""
        return self._launcher.start("migrate_token_data.py", *self._flags, *flags, overwriting=self.overwriting)

    async def end_of(self, pid: int) -> int:
        """Its exit code, negative for a signal."""
        return await asyncio.to_thread(self._launcher.wait, pid)

    async def run(self, *flags: str) -> dict[str, Any]:
        """Runs it to its end; the summary."""
        code = await self.end_of(self.start(*flags))
        assert code == 0, self.said()[-5000:]
        return self.summaries()[-1]

    def said(self) -> str:
        """All that was said in this test."""
        return self._launcher.log.read_text()[self._said_before :]

    def summaries(self) -> list[dict[str, Any]]:
        """Of all runs that came to their end."""
        lines = self.said().replace("}{", "}\n{").splitlines()  # two may speak at once
        return [json.loads(line) for line in lines if line.startswith("{")]


async def kill(script: Script, old: OldDatabase, writers: Writers, random: Random, aim: str) -> str:
    """One life of the script, until a random moment of a phase, or of any; answers when that was."""
    database = writers.database
    before, done = await ids(database, WAITING), await done_months(old, writers)
    pid = script.start()
    if aim == "adopting":
        await crash_driver.until(lambda: is_begun(database, before), "some is adopted")
    elif aim == "counting":
        await crash_driver.until(lambda: is_righter(old, writers, done), "some months are made right")
    await asyncio.sleep(random.uniform(0, MOMENTS[aim]))
    os.kill(pid, signal.SIGKILL)  # not buried yet, so that this is no other process
    code = await script.end_of(pid)
    assert code in (0, -signal.SIGKILL), script.said()[-5000:]
    after = {id_ for id_ in await ids(database, WAITING) if id_ <= max(before)}
    assert after <= before, f"{len(after - before)} rows are adopted no more, besides {len(before)}; code {code}"
    undone = done - await done_months(old, writers)
    assert not undone, f"of {len(done)} months that were right these are so no more: {undone}; code {code}"
    if code == 0:
        return "never"
    if after == before:
        return "before adopting"
    return "counting" if await is_adopted(database, before) else "adopting"


async def is_righter(old: OldDatabase, writers: Writers, done: Collection[UserMonth]) -> bool:
    return not await done_months(old, writers) <= set(done)


async def is_begun(database: Database, rows: Collection[int]) -> bool:
    return not set(rows) <= await ids(database, WAITING)


async def is_adopted(database: Database, rows: Collection[int]) -> bool:
    return not (await ids(database, WAITING) - await ids(database, OWNED_BY_NOBODY)) & set(rows)


async def done_months(old: OldDatabase, writers: Writers) -> set[UserMonth]:
    """The months in which nothing is left to do, whatever the writers do."""
    month_of = {item.id: (item.owner, f"{item.instant:%Y-%m}") for item in old.messages if item.instant and item.owner}
    waiting = {month_of.get(id_) for id_ in await ids(writers.database, NOT_COUNTED)}
    written_by_old_processes = {(owner, f"{live_writers.MONTHS[0]:%Y-%m}") for owner in live_writers.OWNERS}
    return await invariants.right(writers.database) - waiting - written_by_old_processes


async def test_a_script_killed_again_and_again_amid_writers_is_exact(
    old: OldDatabase, database: Database, script: Script
) -> None:
    random, began, lives = Random(SEED), time.monotonic(), list[str]()
    aims = list(MOMENTS)[::-1]
    await script.run("--user", str(old_databases.IDLE_USER))  # makes the tables
    with telling(lives):
        async with live_writers.writing(database) as writers:
            for number in range(-KILLS, 0):  # the last one while it counts
                await execute(database, *DAMAGE)
                await writers.write_as_an_old_process(OLD_ROWS)
                lives.append(await kill(script, old, writers, random, aims[number % 3]))
            done = await done_months(old, writers)
            summary = await script.run()
            assert summary["unchanged"] >= len(done) > 0, f"of {len(done)} right months some were done again; {summary}"
        await check(database)
        await script.run()
        await check_all(old, writers)
        assert {"adopting", "counting"} <= set(lives) or KILLS < 10
    moments, stored = dict(Counter(lives)), dict(writers.acknowledged)
    logger.info("%d kills in %.0f s: %s; acknowledged: %s", KILLS, time.monotonic() - began, moments, stored)


@contextmanager
def telling(lives: Sequence[str]) -> Iterator[None]:
    """A failure says where the script stood when it was killed, each time."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"killed {len(lives)} times so far: {', '.join(lives)}")
        raise


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("overwriting", [False, True], ids=["adding", "overwriting"])
async def test_a_script_that_overwrote_months_would_be_found_out(
    database: Database, script: Script, overwriting: bool
) -> None:
    """The control: one statement that sums and sets, at READ COMMITTED, forgets what was committed while it waited.

    Not on SQLite, where it would be exact: its transaction begins with BEGIN IMMEDIATE and is the only writing one.
    """
    await script.run()
    script.overwriting = overwriting
    wrong, runs = False, 0
    while not wrong and runs < (MOST_RUNS if overwriting else 1):
        runs += 1
        async with live_writers.writing(database, servers=8, old_processes=0, hold_seconds=0.005):
            await execute(database, *DAMAGE)
            await script.run()
        wrong = await is_wrong(database)
    assert wrong == overwriting, f"after {runs} runs"
    logger.info("after %d runs the rollup is %s", runs, "wrong" if wrong else "right")


async def is_wrong(database: Database) -> bool:
    try:
        await check(database)
    except AssertionError as error:
        if "the rollup has" not in str(error):
            raise
        return True
    return False


async def test_two_scripts_that_are_started_together_count_once(
    old: OldDatabase, database: Database, script: Script
) -> None:
    for turn in range(TOGETHER):
        both = [script.start() for _ in range(2)]
        assert [await script.end_of(pid) for pid in both] == [0, 0], script.said()[-5000:]
        if turn == 0:
            assert sum(summary["created"] for summary in script.summaries()) == len(old.months())
        assert await asyncio.to_thread(old_databases.rollup, old.url) == old.months()
        await check(database)
        await execute(database, *DAMAGE)


async def test_an_old_database_is_adopted_while_the_server_answers(
    old: OldDatabase, script: Script, tmp_path: Path
) -> None:
    """A month is made when all of its messages are adopted: whoever sees it sees all of it."""
    expected = months_over_http.expected(old)
    with commands.server(old.url, tmp_path, LOG_LEVEL="WARNING") as address:  # a line each would fill the pipe
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as client:
            run = asyncio.create_task(script.run())
            async with asyncio.TaskGroup() as group:
                readers = [group.create_task(read_until(run, client, user, expected)) for user in USERS]
            assert (await run)["created"] == len(expected)
            assert await months_over_http.everyone(client) == expected
    logger.info("%d answers", sum(reader.result() for reader in readers))


async def read_until(
    run: asyncio.Task[Any], client: httpx.AsyncClient, user: int, expected: months_over_http.Seen
) -> int:
    """Reads a user's months again and again, which must never be wrong; answers how often."""
    answers, seen = 0, months_over_http.Seen()
    while True:
        last = run.done()
        now = await months_over_http.of_user(client, user, limit=36)
        assert now.items() <= expected.items()
        assert seen.keys() <= now.keys(), "what was counted once stays counted"
        seen, answers = now, answers + 1
        if last:
            assert now == {key: month for key, month in expected.items() if key[0] == user}
            return answers
