"""`migrate_token_data.py` where others hold a lock for long."""

import asyncio
import threading

import pytest
from sqlalchemy import text

import migrate_token_data
from app.db import database as database_module
from app.db import urls
from app.db.database import Database
from services import backfill
from services.backfill import deficits
from services.backfill.deficits import KeyRange
from services.backfill.report import Report
from tests.support import old_databases, raw_sql
from tests.support.backfilling import until, waiting
from tests.support.commands import migrate
from tests.support.crash_driver import DEADLINE_SECONDS
from tests.support.old_copies import OldCopy
from tests.support.old_databases import OldDatabase


@pytest.fixture
def old(old_copy: OldCopy) -> OldDatabase:
    """An old database at the newest schema, of which one user is adopted."""
    return old_copy(2, "--user", "1")


@pytest.mark.parametrize(("before", "within"), [("4MB", "64MB"), ("1GB", "1GB")])
@pytest.mark.parametrize("kind", ["postgresql"])
async def test_sorts_are_given_memory_and_never_less_than_they_had(
    database: Database, before: str, within: str
) -> None:
    shown = text("SHOW work_mem")
    async with database.sessions() as session:
        await session.execute(text(f"SET work_mem = '{before}'"))
        await session.commit()
        await deficits.read(session, KeyRange(1, 1))
        assert await session.scalar(shown) == within
        await session.rollback()
        assert await session.scalar(shown) == before


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("flags", [["--verify"], []])
def test_postgresql_compiles_no_statement_of_the_script(
    old: OldDatabase, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    shown = []

    async def look(database: Database, *_rest: object) -> Report:
        async with database.reads() as session:
            shown.append(await session.scalar(text("SHOW jit")))
        return Report()

    monkeypatch.setattr(backfill, "run", look)
    monkeypatch.setattr(backfill, "verify", look)
    raw_sql.run(old.url, f'ALTER DATABASE "{urls.parse(old.url).database}" SET jit = on')
    assert migrate(old.url, *flags).code == 0
    assert shown == ["off"]


@pytest.mark.long
@pytest.mark.parametrize("locked", ["user_daily_token_usage IN SHARE MODE", "messages IN ACCESS EXCLUSIVE MODE"])
@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_run_steps_back_from_a_long_lock_and_continues_after_it(
    old: OldDatabase, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    stepped_back = threading.Event()
    monkeypatch.setattr(migrate_token_data, "LOCK_TIMEOUT", "20ms")
    monkeypatch.setattr(database_module.logger, "warning", lambda _said: stepped_back.set())
    database = Database.open(old.url)
    async with database.sessions.begin() as session:
        await session.execute(text(f"LOCK TABLE {locked}"))
        run = asyncio.create_task(asyncio.to_thread(migrate, old.url, "--json"))
        assert await asyncio.to_thread(stepped_back.wait, DEADLINE_SECONDS), "the run waits in the queue"
        assert not run.done()
    assert (await run).code == 0
    await database.close()
    assert await asyncio.to_thread(old_databases.rollup, old.url) == old.months()


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_comparison_waits_for_a_lock_as_none_waits_behind_it(
    old: OldDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await asyncio.to_thread(migrate, old.url, "--quiet")).code == 0
    monkeypatch.setattr(migrate_token_data, "LOCK_TIMEOUT", "1ms")
    database = Database.open(old.url)
    async with database.sessions.begin() as session:
        await session.execute(text("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE"))
        comparison = asyncio.create_task(asyncio.to_thread(migrate, old.url, "--verify"))
        await until(lambda: waiting(database))
    assert (await comparison).code == 0
    await database.close()
