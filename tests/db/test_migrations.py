"""Bringing databases up to date: by several processes at once, up and down, and never what is not ours."""

import asyncio
import uuid
from argparse import Namespace
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import pytest
from alembic import autogenerate, command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from app import BASE_DIR
from app.db import going_back, migrations, revisions
from app.db.database import Database
from models import Base
from tests.conftest import UrlOf
from tests.support import commands, months_over_http, old_databases, raw_sql
from tests.support.accounts import Caller
from tests.support.commands import migrate
from tests.support.old_messages import Month

PROCESSES = 4


@pytest.mark.parametrize("generation", [None, 3], ids=["empty database", "old database"])
@pytest.mark.long
def test_several_processes_may_start_at_once(empty_database_url: str, generation: int | None, tmp_path: Path) -> None:
    old = old_databases.build(empty_database_url, generation, rows=100) if generation else None
    start = ["migrate_token_data.py", "--json"]
    processes = [commands.start(start, tmp_path, DATABASE_URL=empty_database_url) for _ in range(PROCESSES)]
    outcomes = [commands.finish(process) for process in processes]
    assert [outcome.code for outcome in outcomes] == [0] * PROCESSES, [outcome.err for outcome in outcomes]
    months = old.months() if old else {}
    assert old_databases.rollup(empty_database_url) == months
    if old:
        done = [outcome.summary["created"] + outcome.summary["updated"] for outcome in outcomes]
        assert sum(done) == old.counts.created + old.counts.updated
        assert old.contents()["feedback"]
    assert raw_sql.run(empty_database_url, "SELECT version_num FROM alembic_version") == [(revisions.head(),)]


async def still_missing(database: Database, *kinds: str) -> list[Any]:
    """What Alembic would still do to make the database what the models say, of these kinds."""

    def compare(connection: Connection) -> list[Any]:
        opts = {"include_name": lambda name, _type, _parents: not str(name).startswith("message_trigrams")}  # of FTS5
        found = autogenerate.compare_metadata(MigrationContext.configure(connection, opts=opts), Base.metadata)
        names = [str(item[0] if isinstance(item, tuple) else item[0][0]) for item in found]
        return [item for name, item in zip(names, found, strict=True) if name.startswith(kinds)]

    async with database.engine.connect() as connection:
        return await connection.run_sync(compare)


def missing(url: str, *kinds: str) -> list[Any]:
    """The same, of a database that is not open."""

    async def look() -> list[Any]:
        opened = Database.open(url)
        try:
            return await still_missing(opened, *kinds)
        finally:
            await opened.close()

    return asyncio.run(look())


def test_a_new_database_is_what_the_models_say(database_url: str) -> None:
    assert missing(database_url, "") == []


@pytest.mark.parametrize("generation", old_databases.GENERATIONS)
def test_an_adopted_database_lacks_nothing_that_the_models_say(empty_database_url: str, generation: int) -> None:
    old_databases.build(empty_database_url, generation, rows=1)
    asyncio.run(migrations.upgrade(empty_database_url))
    assert missing(empty_database_url, "add_table", "add_column", "add_index") == []


@pytest.mark.any_database
def test_adopting_does_not_rewrite_the_messages(empty_database_url: str, kind: str) -> None:
    where = {
        "sqlite": "SELECT rootpage FROM sqlite_master WHERE name = 'messages'",
        "postgresql": "SELECT pg_relation_filenode('messages')",
    }
    old_databases.build(empty_database_url, 3, rows=1)
    before = raw_sql.value(empty_database_url, where[kind])
    asyncio.run(migrations.upgrade(empty_database_url))
    assert raw_sql.value(empty_database_url, where[kind]) == before


def test_a_database_that_is_up_to_date_is_left_alone(database_url: str) -> None:
    before = raw_sql.snapshot(database_url)
    asyncio.run(migrations.upgrade(database_url))
    assert raw_sql.snapshot(database_url) == before


def alembic(url: str, revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the `alembic` command does with the project's own configuration: upgrades to head, or downgrades."""
    monkeypatch.setenv("DATABASE_URL", url)
    confirmed = Namespace(x=[going_back.CONFIRMATION])
    config = Config(toml_file=BASE_DIR / "pyproject.toml", cmd_opts=confirmed)
    if revision == "head":
        command.upgrade(config, revision)
    else:
        command.downgrade(config, revision)


@pytest.mark.long
def test_a_new_database_goes_up_and_down_and_up(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for revision in ("head", "base", "head"):
        alembic(empty_database_url, revision, monkeypatch)
    assert missing(empty_database_url, "add_", "modify_") == []
    assert migrate(empty_database_url, "--verify").code == 0


async def test_a_downgrade_keeps_images(
    client: httpx.AsyncClient, ayu: Caller, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = BytesIO()
    PIL.Image.new("RGB", (3, 2)).save(file, "PNG")
    form = {"message": "What is it?", "stream": "false"}
    await client.post("/chat", data=form, files={"images": file.getvalue()}, headers=ayu.headers)
    for revision in ("0011", "head"):
        await asyncio.to_thread(alembic, database_url, revision, monkeypatch)
    count = "SELECT count(*) FROM message_images"
    assert await asyncio.to_thread(raw_sql.run, database_url, count) == [(1,)]


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_the_alembic_command_waits_for_its_turn(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database.open(empty_database_url)
    async with migrations.alone(database):
        upgrade = asyncio.create_task(asyncio.to_thread(alembic, empty_database_url, "head", monkeypatch))
        await asyncio.sleep(0.5)
        assert not await revisions.is_current(database)
    await upgrade
    assert await revisions.is_current(database)
    await database.close()


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_the_lock_outlives_a_timeout_of_idle_transactions(empty_database_url: str) -> None:
    name = empty_database_url.partition("?")[0].rpartition("/")[2]
    for limit in ("idle_in_transaction_session_timeout", "transaction_timeout"):
        await asyncio.to_thread(raw_sql.run, empty_database_url, f"ALTER DATABASE {name} SET {limit} = '100ms'")
    first, second = Database.open(empty_database_url), Database.open(empty_database_url)
    async with migrations.alone(first):
        await asyncio.sleep(0.3)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5), migrations.alone(second):
                pass
    async with migrations.alone(second):
        pass
    await first.close()
    await second.close()


@pytest.mark.parametrize("generation", old_databases.GENERATIONS)
@pytest.mark.long
def test_an_old_database_goes_up_down_and_up_without_loss(
    empty_database_url: str, generation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = old_databases.build(empty_database_url, generation, rows=100)
    contents = old.contents()
    assert migrate(old.url).code == 0
    alembic(old.url, "base", monkeypatch)
    assert old.contents() == contents
    assert "usage_date" not in raw_sql.columns_of(old.url, "messages")
    again = migrate(old.url, "--json").summary
    assert (again["created"], again["updated"], again["unchanged"]) == (0, 0, len(old.months()))
    assert old_databases.rollup(old.url) == old.months()
    assert old.contents() == contents
    if old.url.startswith("sqlite"):
        assert raw_sql.run(old.url, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.any_database
def test_usage_recorded_since_survives_going_down_and_up(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = old_databases.build(empty_database_url, 2, rows=100)
    assert migrate(old.url).code == 0
    conversation = next(message.conversation_id for message in old.messages if message.owner == 1)
    record = {"id": "one", "user_id": 1, "model": "gpt-4o", "input_tokens": 30, "output_tokens": 12}
    record |= {"cost": "0.1234567891", "created_at": "2025-01-31T23:59:59Z", "conversation_id": conversation}
    most = 2**31 - 1  # the sum of two such is more than the old column of totals can hold
    largest = record | {"id": "two", "input_tokens": most, "output_tokens": most, "created_at": "2025-02-01T00:00:00Z"}

    async def work(client: httpx.AsyncClient) -> None:
        headers = Caller(1, old_databases.username(1)).headers
        answer = await client.post("/usage/records", json={"records": [record, largest]}, headers=headers)
        assert answer.status_code == 200, answer.text

    months_over_http.in_application(old.url, work)
    expected = old.months()
    expected |= {(1, "2025-01"): Month(30, 12, Decimal("0.1234567891"), 1)}
    expected |= {(1, "2025-02"): Month(most, most, Decimal("0.1234567891"), 1)}
    assert old_databases.rollup(old.url) == expected
    alembic(old.url, "base", monkeypatch)
    assert migrate(old.url).code == 0
    assert old_databases.rollup(old.url) == expected


@pytest.mark.parametrize(
    ("broken", "before"),
    [
        ("ix_messages_conversation_id", "0001"),
        ("ix_messages_user_id_usage_date_conversation_id", "0005"),
        ("ix_user_daily_token_usage_usage_date", "0015"),
    ],
)
@pytest.mark.sampled(1)
def test_an_index_whose_building_was_broken_off_is_built_anew(
    postgresql: UrlOf, monkeypatch: pytest.MonkeyPatch, broken: str, before: str
) -> None:
    name = f"test_{uuid.uuid4().hex}"
    url = postgresql(name)
    raw_sql.run(postgresql("postgres"), f"CREATE DATABASE {name}")
    asyncio.run(migrations.upgrade(url))
    index = f"SELECT indisvalid, pg_get_indexdef(indexrelid) FROM pg_index WHERE indexrelid = '{broken}'::regclass"
    built = raw_sql.run(url, index)
    alembic(url, before, monkeypatch)
    raw_sql.run(
        url,
        f"CREATE INDEX {broken} ON messages (role)",
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{broken}'::regclass",
    )
    asyncio.run(migrations.upgrade(url))
    assert raw_sql.run(url, index) == built
    assert built[0][0] is True
    raw_sql.run(postgresql("postgres"), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize(
    "form",
    [
        '"content" TEXT NOT NULL',
        "[content] TEXT NOT NULL",
        "`content` TEXT NOT NULL",
        "content text not null",
        "content VARCHAR(4000) NOT NULL",
        "content TEXT DEFAULT '' NOT NULL",
        "content TEXT CONSTRAINT something NOT NULL",
        "content TEXT NOT NULL CHECK (content NOT NULL OR true)",
    ],
)
@pytest.mark.sampled(3)
def test_content_becomes_nullable_in_every_old_sqlite_table(form: str, tmp_path: Path) -> None:
    old = old_databases.build(f"sqlite:///{tmp_path / 'old.db'}", 3, rows=20)
    usual = "content TEXT NOT NULL"
    table = "type = 'table' AND name = 'messages'"
    assert usual in raw_sql.value(old.url, f"SELECT sql FROM sqlite_master WHERE {table}")
    changed = f"replace(sql, '{usual}', '{form.replace(chr(39), 2 * chr(39))}')"
    raw_sql.run(old.url, "PRAGMA writable_schema = ON", f"UPDATE sqlite_master SET sql = {changed} WHERE {table}")
    contents = old.contents()
    asyncio.run(migrations.upgrade(old.url))
    assert old.contents() == contents
    assert raw_sql.run(old.url, "PRAGMA integrity_check") == [("ok",)]
    raw_sql.run(old.url, "UPDATE messages SET content = NULL, conversation_id = NULL")
    assert raw_sql.run(old.url, "PRAGMA foreign_key_list(feedback)") == feedback_keys(tmp_path)


def feedback_keys(tmp_path: Path) -> list[raw_sql.Row]:
    """The foreign keys of `feedback` as they were made."""
    other = old_databases.build(f"sqlite:///{tmp_path / 'other.db'}", 3, rows=1)
    return raw_sql.run(other.url, "PRAGMA foreign_key_list(feedback)")


@pytest.mark.any_database
def test_a_database_of_someone_else_is_refused_and_left_alone(empty_database_url: str, tmp_path: Path) -> None:
    raw_sql.run(empty_database_url, "CREATE TABLE users (name TEXT)", "INSERT INTO users VALUES ('ayu')")
    scripts = [migrate(empty_database_url, *flags) for flags in ([], ["--verify"], ["--dry-run"])]
    server = commands.run(["main.py"], tmp_path, DATABASE_URL=empty_database_url, PORT=str(commands.free_port()))
    for outcome in (*scripts, server):
        assert (outcome.code, outcome.out) == (2, "")
        (error,) = [line for line in outcome.err.splitlines() if " INFO " not in line]
        assert "the table users has no column" in error
    assert raw_sql.contents(empty_database_url, "users") == [("ayu",)]
    assert "messages" not in str(raw_sql.schema(empty_database_url))


def test_a_database_of_a_newer_version_is_refused(database_url: str) -> None:
    raw_sql.run(database_url, "UPDATE alembic_version SET version_num = 'zzz'")
    for flags in ([], ["--verify"], ["--dry-run"]):
        outcome = migrate(database_url, *flags)
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
        assert "the database is of a newer version (its schema is zzz): " in outcome.err


def test_where_a_file_cannot_be_in_wal_mode_it_says_so(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    migrations._enable_wal(":memory:")
    assert "cannot use WAL mode" in caplog.text


def test_the_newest_revision_is_alembics() -> None:
    scripts = ScriptDirectory(str(revisions.SCRIPTS))
    assert scripts.get_heads() == [revisions.head()]
