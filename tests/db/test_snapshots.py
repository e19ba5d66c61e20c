"""Sessions that read the same moment, whatever is written meanwhile."""

import asyncio

import pytest
from sqlalchemy import text

from app.db import snapshots
from app.db.database import Database
from tests.support.backfilling import execute

COUNT = text("SELECT count(*) FROM foundation_settings WHERE name LIKE 'number %'")


async def write_without_end(database: Database) -> None:
    number = 0
    while True:
        number += 1
        await execute(database, f"INSERT INTO foundation_settings (name, value) VALUES ('number {number}', '')")
        await asyncio.sleep(0.001)


async def test_all_sessions_see_the_same_whatever_is_written_meanwhile(database: Database) -> None:
    writing = asyncio.create_task(write_without_end(database))
    seen = []
    for _ in range(30):
        async with snapshots.open_same(database, 3) as sessions:
            await asyncio.sleep(0.005)
            counts = [await session.scalar(COUNT) for session in (*sessions, *sessions)]
            assert len(set(counts)) == 1
            seen.append(counts[0])
    assert not writing.done()
    writing.cancel()
    assert seen[-1] > seen[0], "somebody wrote"


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_there_is_one_session_if_writes_cannot_be_detected(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "DATA_VERSION", text("SELECT random()"))
    async with snapshots.open_same(database, 3) as sessions:
        assert len(sessions) == 1
        assert await sessions[0].scalar(COUNT) == 0
