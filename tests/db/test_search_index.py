"""The index of trigrams: built by the migration or by the script, where the database can have it, and not elsewhere."""

import asyncio
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import event

from app import BASE_DIR
from app.db import migrations, search_index
from app.db.database import Database
from services.chat import conversation_lists
from tests.support import commands, debian_postgresql, raw_sql
from tests.support.accounts import SECRET_KEY
from tests.support.debian_postgresql import migrated

INDEX = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('ix_messages_content_trigrams')"
OBJECTS = "SELECT name FROM sqlite_master WHERE name LIKE 'message_trigrams%' ORDER BY 1"
BUILDING = "building the index for searches"


def downgrade(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("SECRET_KEY", SECRET_KEY)
    config = Config(cmd_opts=Namespace(x=["accept-loss"]))
    config.set_main_option("script_location", str(BASE_DIR / "alembic"))
    command.downgrade(config, "0014")


def script(url: str, directory: Path, *flags: str) -> Sequence[str]:
    """Run the script; return the lines that are about searches."""
    process = commands.start(["migrate_token_data.py", *flags], directory, DATABASE_URL=url)
    outcome = commands.finish(process)
    assert outcome.code == 0, outcome.err
    return [line for line in outcome.err.splitlines() if "search" in line]


@pytest.mark.parametrize("kind", ["sqlite"])
def test_sqlite_has_the_index_at_head_and_not_before(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(migrations.upgrade(empty_database_url))
    names = [row[0] for row in raw_sql.run(empty_database_url, OBJECTS)]
    assert {f"message_trigrams{suffix}" for suffix in ("", "_insert", "_update", "_delete", "_data")} <= set(names)
    downgrade(empty_database_url, monkeypatch)
    assert raw_sql.run(empty_database_url, OBJECTS) == []
    raw_sql.run(
        empty_database_url, "INSERT INTO messages (role, content) VALUES ('user', 'said')", "DELETE FROM messages"
    )
    asyncio.run(migrations.upgrade(empty_database_url))
    assert [row[0] for row in raw_sql.run(empty_database_url, OBJECTS)] == names


@pytest.mark.long
@debian_postgresql.needed
def test_postgresql_searches_by_the_index(debian_server: str) -> None:
    url = migrated(debian_server, "indexed")
    assert raw_sql.run(url, INDEX) == [(True,)]
    raw_sql.run(
        url,
        "INSERT INTO users (id, username, email, hashed_password, role) VALUES (1, 'ayu', 'a@b.example', '!', 'user')",
        "INSERT INTO conversations (id, user_id, title, model_type) SELECT i::text, 1, 't', 's'"
        " FROM generate_series(0, 999) i",
        "INSERT INTO messages (conversation_id, user_id, role, content) SELECT (i % 1000)::text, 1, 'user',"
        " md5(i::text) || repeat(' xy', 100) FROM generate_series(1, 20000) i",
        "VACUUM ANALYZE",
    )
    assert "ix_messages_content_trigrams" in asyncio.run(plan(url, "moon"))
    assert "ix_messages_content_trigrams" in asyncio.run(plan(url, "Mönd"))
    assert "ix_messages_content_trigrams" not in asyncio.run(plan(url, "xy"))
    assert "ix_messages_content_trigrams" not in asyncio.run(plan(url, "xy xy"))


async def plan(url: str, keyword: str) -> str:
    """How PostgreSQL looks for a keyword."""
    database = Database.open(url)
    asked: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, values: object, *_more: object) -> None:
        asked.append((statement, values))

    try:
        event.listen(database.engine.sync_engine, "before_cursor_execute", note)
        await database.read(lambda session: conversation_lists.listed(session, 1, 1, 12, keyword))
        (searching,) = [seen for seen in asked if "count(*) OVER ()" in seen[0]]
        async with database.engine.connect() as connection:
            rows = await connection.exec_driver_sql(f"EXPLAIN {searching[0]}", searching[1])
            return "\n".join(str(row[-1]) for row in rows)
    finally:
        await database.close()


@pytest.mark.long
@debian_postgresql.needed
def test_the_script_builds_what_the_migration_left(
    debian_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search_index, "SMALL", 2)
    url = migrated(debian_server, "large")
    assert raw_sql.run(url, INDEX) == [(True,)]
    downgrade(url, monkeypatch)
    assert raw_sql.run(url, INDEX) == []
    raw_sql.run(url, "INSERT INTO messages (role, content) SELECT 'user', 'said' FROM generate_series(1, 3)")
    asyncio.run(migrations.upgrade(url))
    assert "until python migrate_token_data.py has built" in capfd.readouterr().err
    assert raw_sql.run(url, INDEX) == []
    assert script(url, tmp_path, "--dry-run") == script(url, tmp_path, "--verify") == []
    assert raw_sql.run(url, INDEX) == []
    assert BUILDING in "".join(script(url, tmp_path))
    assert raw_sql.run(url, INDEX) == [(True,)]
    assert script(url, tmp_path) == []


@pytest.mark.long
@debian_postgresql.needed
def test_an_interrupted_index_is_built_again(debian_server: str, tmp_path: Path) -> None:
    url = migrated(debian_server, "broken")
    raw_sql.run(
        url,
        "DROP INDEX ix_messages_content_trigrams",
        "CREATE INDEX ix_messages_content_trigrams ON messages (role)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_messages_content_trigrams'::regclass",
    )
    assert BUILDING in "".join(script(url, tmp_path))
    assert raw_sql.run(url, INDEX) == [(True,)]
    assert "gin" in raw_sql.value(url, "SELECT pg_get_indexdef('ix_messages_content_trigrams'::regclass)")


@pytest.mark.long
@debian_postgresql.needed
def test_a_role_may_lack_the_right_to_the_extension(debian_server: str, tmp_path: Path) -> None:
    raw_sql.run(debian_server, "CREATE ROLE modest LOGIN", "CREATE DATABASE modest")
    url = debian_server.replace("/postgres?", "/modest?")
    raw_sql.run(url, "GRANT CREATE ON SCHEMA public TO modest")
    (line,) = script(url.replace("postgres@", "modest@"), tmp_path)
    assert "permission denied to create extension" in line
    assert raw_sql.run(url, INDEX) == []


@pytest.mark.long
@debian_postgresql.needed
def test_the_extension_may_be_in_another_schema(debian_server: str) -> None:
    raw_sql.run(debian_server, "CREATE DATABASE elsewhere")
    url = debian_server.replace("/postgres?", "/elsewhere?")
    raw_sql.run(url, 'CREATE SCHEMA "Other"', 'CREATE EXTENSION pg_trgm SCHEMA "Other"')
    asyncio.run(migrations.upgrade(url))
    assert raw_sql.run(url, INDEX) == [(True,)]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["postgresql"])
def test_a_server_may_lack_the_extension(empty_database_url: str, tmp_path: Path) -> None:
    (line,) = script(empty_database_url, tmp_path)
    assert "is not available" in line
    assert script(empty_database_url, tmp_path, "--quiet") == []
    assert raw_sql.run(empty_database_url, INDEX) == []
