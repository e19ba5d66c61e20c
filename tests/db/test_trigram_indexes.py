"""The revision that indexes the trigrams of messages, where the database has them and where it does not."""

import asyncio
from argparse import Namespace
from collections.abc import Iterator

import pytest
from alembic import command
from alembic.config import Config

from app import BASE_DIR
from app.db import migrations
from app.db.database import Database
from tests.support import debian_postgresql, raw_sql, searching
from tests.support.accounts import SECRET_KEY

INDEX = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_messages_content_trigrams'::regclass"
ANY_INDEX = "SELECT to_regclass('ix_messages_content_trigrams')"
OBJECTS = "SELECT name FROM sqlite_master WHERE name LIKE 'message_trigrams%' ORDER BY 1"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A PostgreSQL with all extensions."""
    with debian_postgresql.running() as url:
        yield url


def of(server: str, database: str, user: str = "postgres") -> str:
    """The URL of another database, or of another user."""
    return server.replace("/postgres?", f"/{database}?").replace("postgres@", f"{user}@")


def downgrade(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("SECRET_KEY", SECRET_KEY)
    config = Config(cmd_opts=Namespace(x=None))
    config.set_main_option("script_location", str(BASE_DIR / "alembic"))
    command.downgrade(config, "0014")


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


@debian_postgresql.needed
def test_postgresql_searches_by_the_index(server: str) -> None:
    raw_sql.run(server, "CREATE DATABASE indexed")
    url = of(server, "indexed")
    asyncio.run(migrations.upgrade(url))
    assert raw_sql.run(url, INDEX) == [(True,)]
    raw_sql.run(
        url,
        "INSERT INTO users (id, username, email, hashed_password, role) VALUES (1, 'ayu', 'a@b.example', '!', 'user')",
        "INSERT INTO messages (user_id, role, content) SELECT 1, 'user', md5(i::text) FROM generate_series(1, 50000) i",
        "ANALYZE messages",
    )
    plan = asyncio.run(explained(url))
    assert "ix_messages_content_trigrams" in plan, plan


async def explained(url: str) -> str:
    """How PostgreSQL looks for a rare keyword."""
    database = Database.open(url)
    try:
        return await searching.plan(database, 1, "moon")
    finally:
        await database.close()


@debian_postgresql.needed
def test_a_broken_off_index_is_built_again(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_sql.run(server, "CREATE DATABASE broken")
    url = of(server, "broken")
    asyncio.run(migrations.upgrade(url))
    downgrade(url, monkeypatch)
    assert raw_sql.value(url, ANY_INDEX) is None
    raw_sql.run(
        url,
        "CREATE INDEX ix_messages_content_trigrams ON messages (role)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_messages_content_trigrams'::regclass",
    )
    asyncio.run(migrations.upgrade(url))
    assert raw_sql.run(url, INDEX) == [(True,)]


@debian_postgresql.needed
def test_a_role_that_may_not_create_the_extension_does_without(server: str, caplog: pytest.LogCaptureFixture) -> None:
    raw_sql.run(server, "CREATE ROLE modest LOGIN", "CREATE DATABASE modest")
    raw_sql.run(of(server, "modest"), "GRANT CREATE ON SCHEMA public TO modest")
    asyncio.run(migrations.upgrade(of(server, "modest", "modest")))
    assert "permission denied to create extension" in caplog.text
    assert raw_sql.value(of(server, "modest"), ANY_INDEX) is None


@debian_postgresql.needed
def test_the_extension_may_be_in_another_schema(server: str) -> None:
    raw_sql.run(server, "CREATE DATABASE elsewhere")
    url = of(server, "elsewhere")
    raw_sql.run(url, 'CREATE SCHEMA "Other"', 'CREATE EXTENSION pg_trgm SCHEMA "Other"')
    asyncio.run(migrations.upgrade(url))
    assert raw_sql.run(url, INDEX) == [(True,)]


@pytest.mark.parametrize("kind", ["postgresql"])
def test_a_server_without_the_extension_does_without(empty_database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(migrations.upgrade(empty_database_url))
    assert "searches will read all messages of a user" in caplog.text
    assert raw_sql.value(empty_database_url, ANY_INDEX) is None
