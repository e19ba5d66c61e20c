"""`migrate_token_data.py` as processes: users deleted beside it, and `--redate` killed half-way."""

import asyncio
import os
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text

from app.db.database import Database
from services.accounts import users
from tests.support import commands, crash_driver, invariants, live_writers
from tests.support.forked_script import database, launcher, old
from tests.support.launching import Launcher
from tests.support.live_writers import NOT_COUNTED
from tests.support.old_databases import IDLE_USER, USERS, OldDatabase

__all__ = ["database", "launcher", "old"]

pytestmark = pytest.mark.long

ZONES = ("Asia/Tokyo", "America/New_York")
KILLS = 12
# Seconds after its start at which the script is killed, at most.
LONGEST_LIFE = 1.0
SUMS = {
    "messages": "SELECT user_id, usage_date, input_tokens FROM messages WHERE usage_date IS NOT NULL",
    "days": "SELECT user_id, usage_date, input_tokens FROM user_daily_token_usage",
    "months": "SELECT user_id, year, month, input_tokens FROM user_monthly_token_usage",
}


def start(launcher: Launcher, url: str, *flags: str, zone: str = "UTC") -> int:
    """Start the script; return the id of its process."""
    command = ("migrate_token_data.py", "--database-url", url, "--quiet", "--batch-size", "2", *flags)
    return launcher.start(*command, USAGE_TIMEZONE=zone)


async def finish(launcher: Launcher, pid: int) -> None:
    """Wait for a good end."""
    assert await asyncio.to_thread(launcher.wait, pid) == 0, launcher.log.read_text()[-5000:]


@pytest.mark.parametrize("seed", range(3))
async def test_users_can_be_deleted_while_the_script_runs(
    old: OldDatabase, database: Database, launcher: Launcher, seed: int
) -> None:
    random = Random(seed)
    await finish(launcher, start(launcher, old.url, "--user", str(IDLE_USER)))  # makes the tables
    before = await live_writers.ids(database, NOT_COUNTED)
    pid = start(launcher, old.url)
    await crash_driver.until(partial(has_begun, database, before), "some is adopted")
    deleted = random.sample(USERS, 2)
    for user_id in deleted:
        await database.transaction(partial(users.delete, user_id=user_id))
        await asyncio.sleep(random.uniform(0, 0.1))
    await finish(launcher, pid)
    months = await invariants.check(database, skipped=await live_writers.ids(database, NOT_COUNTED))
    assert set(months) == {month for month in old.months() if month[0] not in deleted}
    assert (await asyncio.to_thread(commands.migrate, old.url, "--verify", "--quiet")).code == 0


async def has_begun(database: Database, before: set[int]) -> bool:
    return not before <= await live_writers.ids(database, NOT_COUNTED)


async def sums(database: Database) -> dict[str, Counter[Any]]:
    """Input tokens by user and month, of one moment, as each table has them."""
    found: dict[str, Counter[Any]] = {name: Counter() for name in SUMS}

    async def work(session: Any) -> None:
        if database.engine.dialect.name == "postgresql":
            await session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        for name, statement in SUMS.items():
            for user_id, *when, tokens in await session.execute(text(statement)):
                month = f"{when[0]:04d}-{when[1]:02d}" if len(when) == 2 else str(when[0])[:7]
                found[name][user_id, month] += tokens

    await database.read(work)
    return found


async def test_redating_that_is_killed_is_exact_each_time(
    old: OldDatabase, database: Database, launcher: Launcher, tmp_path: Path
) -> None:
    random = Random(1)
    await finish(launcher, start(launcher, old.url))
    codes = Counter[int]()
    for number in range(KILLS):
        pid = start(launcher, old.url, "--redate", zone=ZONES[number % 2])
        await asyncio.sleep(random.uniform(0, LONGEST_LIFE))
        os.kill(pid, signal.SIGKILL)
        codes[await asyncio.to_thread(launcher.wait, pid)] += 1
        found = await sums(database)
        assert found["messages"] == found["days"] == found["months"], f"after kill {number}"
    assert codes[-signal.SIGKILL] > 0, codes
    await finish(launcher, start(launcher, old.url, "--redate", zone=ZONES[0]))
    await invariants.check(database, ZoneInfo(ZONES[0]), await live_writers.ids(database, NOT_COUNTED))
    verified = await asyncio.to_thread(
        commands.run,
        ["migrate_token_data.py", "--verify", "--database-url", old.url],
        tmp_path,
        USAGE_TIMEZONE=ZONES[0],
    )
    assert verified.code == 0, verified.err
