"""`migrate_token_data.py --widen-ids` as processes, killed at random moments beside writers of the application."""

import asyncio
import logging
import os
import signal
from random import Random

import pytest

from app.db.database import Database
from tests.support import live_writers, raw_sql
from tests.support.commands import migrate
from tests.support.forked_script import database, launcher, old
from tests.support.launching import Launcher
from tests.support.old_databases import OldDatabase

__all__ = ["database", "launcher", "old"]

logger = logging.getLogger(__name__)

SEED = 20261127
# Seconds after its start within which a run is killed; the longest run takes about as long.
KILLS, LONGEST_LIFE = 20, 1.5


@pytest.fixture
def kind() -> str:
    """The only kind of database that has 32-bit ids."""
    return "postgresql"


@pytest.mark.long
async def test_widening_killed_again_and_again_amid_writers(
    old: OldDatabase, database: Database, launcher: Launcher
) -> None:
    random, ended = Random(SEED), 0
    assert (await asyncio.to_thread(migrate, old.url, "--quiet")).code == 0
    contents = await asyncio.to_thread(old.contents)
    command = ("migrate_token_data.py", "--database-url", old.url, "--widen-ids", "--quiet")
    async with live_writers.writing(database, servers=10, reporters=5) as writers:
        for number in range(KILLS):
            pid = launcher.start(*command)
            await asyncio.sleep(random.uniform(0, LONGEST_LIFE * (number + 1) / KILLS))
            os.kill(pid, signal.SIGKILL)
            code = await asyncio.to_thread(launcher.wait, pid)
            assert code in (0, -signal.SIGKILL), launcher.log.read_text()[-5000:]
            ended += code == 0
        code = await asyncio.to_thread(launcher.wait, launcher.start(*command))
        assert code == 0, launcher.log.read_text()[-5000:]
    logger.info("%d of %d runs ended before they were killed; acknowledged: %s", ended, KILLS, writers.acknowledged)
    assert "_wide" not in str(await asyncio.to_thread(raw_sql.schema, old.url))
    await check_contents(old, contents)
    assert (await asyncio.to_thread(migrate, old.url, "--quiet")).code == 0
    await live_writers.check_all(old, writers)


async def check_contents(old: OldDatabase, before: dict[str, list[raw_sql.Row]]) -> None:
    """Demands that every old row is there, with its ids."""
    after = await asyncio.to_thread(old.contents)
    for table, rows in before.items():
        assert set(rows) <= set(after[table]), table
