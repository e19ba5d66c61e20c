"""`--archive-before` and `--import-archive` as processes, killed again and again beside writers and readers.

`ROWS=1000000 KILLS=20 pytest -m long -k killed tests/system/test_archive_killed.py` archives a million messages.
"""

import asyncio
import functools
import hashlib
import json
import logging
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.db.database import Database
from app.errors import Conflict
from services.usage import records
from services.usage.pricing import PriceList
from services.usage.records import UsageRecord
from tests.support import commands, invariants, live_writers, months_over_http, old_databases, raw_sql
from tests.support.forked_script import launcher
from tests.support.launching import Launcher
from tests.support.live_writers import Writers, plus
from tests.support.old_databases import USERS

__all__ = ["launcher"]

logger = logging.getLogger(__name__)

ROWS = int(os.environ.get("ROWS", "1000"))
KILLS = int(os.environ.get("KILLS", "12"))
SEED = 20241130
BEFORE = "2024-04"
"""Writers also store messages in February and March, which are archived, and in April, which are not."""
READERS = USERS[3:5]
"""Whose months no writer changes."""
_COLUMNS = (
    *("id", "user_id", "conversation_id", "role", "content", "created_at", "status", "model", "input_tokens"),
    *("output_tokens", "cached_input_tokens", "cost", "usage_date", "idempotency_key"),
)
_FILL = """
    WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last}),
    m AS (SELECT i, i % 2 = 0 AS counted, {month} AS day FROM n)
    INSERT INTO messages ({columns})
    SELECT i, {user}, 'talk', CASE WHEN counted THEN 'assistant' ELSE 'user' END, 'message ' || i || ' {text}', {at},
        'complete', CASE WHEN counted THEN 'm' || i % 3 END, CASE WHEN counted THEN i % 1000 END,
        CASE WHEN counted THEN i % 77 END, CASE WHEN counted THEN 0 END, CASE WHEN counted THEN {cost} END,
        CASE WHEN counted THEN {day} END, CASE WHEN i % 10 = 0 THEN 'record:old-' || i END
    FROM m
"""
_SQL = {
    "sqlite": {
        "month": "date('2023-01-01', '+' || (i * 480 / {rows}) || ' days')",
        "at": "day || ' 12:00:00.000000'",
        "day": "day",
        "cost": "i % 1000",
    },
    "postgresql": {
        "month": "date '2023-01-01' + (i * 480 / {rows})::int",
        "at": "day + interval '12 hours'",
        "day": "day",
        "cost": "(i % 1000) * 0.0000000001",
    },
}


def fill(url: str, kind: str) -> None:
    """Some messages a day of each user, in 16 months."""
    names = ("id", "username", "email", "hashed_password", "role", "is_active")
    people = [(id_, old_databases.username(id_), f"{id_}@example.com", "!", "user", True) for id_ in USERS]
    raw_sql.insert(url, "users", names, people)
    raw_sql.insert(url, "conversations", ("id", "user_id", "title", "model_type"), [("talk", USERS[0], "T", "Fast")])
    parts = {name: part.format(rows=ROWS) for name, part in _SQL[kind].items()}
    choice = " ".join(f"WHEN {i} THEN {user}" for i, user in enumerate(USERS))
    fixed = {"columns": ", ".join(_COLUMNS), "text": "words " * 60, "user": f"CASE i % {len(USERS)} {choice} END"}
    for first in range(1, ROWS + 1, 50_000):
        last = min(first + 49_999, ROWS)
        raw_sql.run(url, _FILL.format(first=first, last=last, **fixed, **parts))
    if kind == "postgresql":
        raw_sql.run(url, f"SELECT setval('messages_id_seq', {ROWS})")
    assert commands.migrate(url, "--quiet").code == 0


def checksum(url: str) -> str:
    """Of all messages that were there first, each value exactly as it is stored."""
    digest, found = hashlib.sha256(), 0
    names = raw_sql.columns_of(url, "messages")
    shown = names if url.startswith("sqlite") else [f"{name}::text" for name in names]
    for first in range(1, ROWS + 1, 20_000):
        within = f"id BETWEEN {first} AND {min(first + 19_999, ROWS)} ORDER BY messages.id"
        for row in raw_sql.run(url, f"SELECT {', '.join(shown)} FROM messages WHERE {within}"):
            digest.update(repr(row).encode())
            found += 1
    return f"{found} {digest.hexdigest()}"


class Script:
    """The script as processes: forked with small steps, or real ones for many messages."""

    def __init__(self, launcher: Launcher, url: str, directory: Path) -> None:
        self._launcher, self._url, self._directory = launcher, url, directory

    async def life(self, *flags: str, seconds: float | None = None) -> int:
        """Runs it to its end, or kills it after some time; the exit code."""
        command = ("migrate_token_data.py", "--database-url", self._url, "--quiet", "--json", *flags)
        if ROWS <= 10_000:
            pid = self._launcher.start(*command)
            await self._kill(pid, seconds)
            return await asyncio.to_thread(self._launcher.wait, pid)
        process = commands.start(command, self._directory)
        await self._kill(process.pid, None if seconds is None else seconds + 1.5)  # which starting takes
        out, err = await asyncio.to_thread(process.communicate)
        assert "Traceback" not in err, err
        logger.info("%s %s", process.returncode, out or err)
        return process.returncode

    async def _kill(self, pid: int, seconds: float | None) -> None:
        if seconds is not None:
            await asyncio.sleep(seconds)
            os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def reading(url: str, directory: Path) -> AsyncIterator[list[int]]:
    """A server, of which `/auth/me` is asked again and again; its answer must never change."""
    answers = [0]
    with commands.server(url, directory, LOG_LEVEL="WARNING") as address:
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as client:
            first = [await months_over_http.of_user(client, user) for user in READERS]

            async def read() -> None:
                while True:
                    assert [await months_over_http.of_user(client, user) for user in READERS] == first
                    answers[0] += 1
                    await asyncio.sleep(0.01)

            task = asyncio.create_task(read())
            yield answers
            assert not task.done(), task
            task.cancel()


def check_files(url: str, directory: Path) -> None:
    """Demands that each message is in a file or in the table, not in both."""
    stored = {row[0] for row in raw_sql.run(url, f"SELECT id FROM messages WHERE id <= {ROWS}")}
    archived = list[int]()
    for name, size, sha256, messages in raw_sql.run(url, "SELECT name, size_bytes, sha256, messages FROM archives"):
        (file,) = directory.glob(f"{name}.*")
        whole = file.read_bytes()[:size]
        assert hashlib.sha256(whole).hexdigest() == sha256
        ids = [json.loads(line)["message"]["id"] for line in whole.splitlines()]
        assert len(ids) == messages
        archived += [id_ for id_ in ids if id_ <= ROWS]
    assert len(archived) == len(set(archived))
    assert sorted([*archived, *stored]) == list(range(1, ROWS + 1))


async def kill_often(
    kills: int, script: Script, url: str, directory: Path, mode: tuple[str, ...], most_seconds: float
) -> None:
    seen = set[int]()
    left = ROWS if mode[0] == "--archive-before" else 0
    for _ in range(kills):
        code = await script.life(*mode, seconds=random.uniform(0, most_seconds))
        assert code in (0, -signal.SIGKILL)
        assert (await asyncio.to_thread(commands.migrate, url, "--verify", "--quiet")).code == 0
        if mode[0] == "--archive-before":
            await asyncio.to_thread(check_files, url, directory)
        count = f"SELECT count(*) FROM messages WHERE id <= {ROWS}"
        before, left = left, await asyncio.to_thread(raw_sql.value, url, count)
        if left == before:  # killed before it worked: the machine is slower
            most_seconds *= 1.3
        seen.add(left)
    logger.info("messages left after kills: %s", sorted(seen))
    assert len(seen) > 2 or kills < 10, "it was never killed while it worked"


@pytest.mark.long
async def test_a_killed_archive_loses_nothing(
    database: Database, database_url: str, kind: str, launcher: Launcher, tmp_path: Path
) -> None:
    random.seed(SEED)
    files = tmp_path / "files"
    await asyncio.to_thread(fill, database_url, kind)
    first, months = await asyncio.to_thread(checksum, database_url), await read_months(database)
    script, most_seconds = Script(launcher, database_url, tmp_path), max(1.0, ROWS / 100_000)
    archiving = ("--archive-before", BEFORE, "--to", str(files))
    async with reading(database_url, tmp_path) as answers, live_writers.writing(database, old_processes=0) as writers:
        began = time.monotonic()
        await kill_often(KILLS, script, database_url, files, archiving, most_seconds)
        assert await script.life(*archiving) == 0
        logger.info("archived in %.0f s, %d answers of /auth/me", time.monotonic() - began, answers[0])
        await asyncio.to_thread(check_files, database_url, files)
        await check_replays(database, writers)
        began = time.monotonic()
        await kill_often(KILLS, script, database_url, files, ("--import-archive", str(files)), most_seconds)
        assert await script.life("--import-archive", str(files)) == 0
        logger.info("imported in %.0f s", time.monotonic() - began)
    assert await asyncio.to_thread(checksum, database_url) == first
    await check_replays(database, writers)
    for key, more in writers.months.items():
        months[key] = plus(months.get(key, invariants.Totals()), more)
    assert await invariants.check(database) == months
    logger.info("acknowledged: %s", dict(writers.acknowledged))


async def read_months(database: Database) -> dict[Any, Any]:
    return dict(await invariants.check(database))


async def check_replays(database: Database, writers: Writers) -> None:
    """Demands that records that were acknowledged are duplicates, archived or not."""
    assert writers.records
    for user, key in random.sample(writers.records, min(100, len(writers.records))):
        id_ = key.removeprefix("record:")
        other = UsageRecord(id=id_, user_id=user, model="other", input_tokens=999_999, output_tokens=0)
        work = functools.partial(records.record, records=[other], prices=PriceList(), zone=UTC)
        with pytest.raises(Conflict):
            await database.transaction(work)
