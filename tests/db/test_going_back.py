"""Downgrades to the earlier backend: confirmed first, and then by its own statements a database that works."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from app import BASE_DIR
from app.db import going_back, wide_ids
from tests.support import archives, months_over_http, old_databases, raw_sql
from tests.support.accounts import register
from tests.support.commands import migrate


def downgrade(url: str, monkeypatch: pytest.MonkeyPatch, *confirmations: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    arguments = Namespace(x=list(confirmations))
    command.downgrade(Config(toml_file=BASE_DIR / "pyproject.toml", cmd_opts=arguments), "base")


async def use(client: httpx.AsyncClient) -> int:
    """Register, chat, delete one conversation, and record usage without a conversation."""
    ayu = await register(client, "ayu")
    answers = []
    for _ in range(2):
        answers.append(await client.post("/chat", json={"message": "hello", "stream": False}, headers=ayu.headers))
    gone = answers[0].json()["conversation_id"]
    assert (await client.delete(f"/conversations/{gone}", headers=ayu.headers)).status_code == 204
    return ayu.id


def record_usage(url: str, user: int) -> None:
    columns = "user_id, role, created_at, status, input_tokens, output_tokens, cost, usage_date, model"
    raw_sql.run(
        url,
        f"INSERT INTO messages ({columns})"
        f" VALUES ({user}, 'assistant', '2025-01-02 03:04:05', 'complete', 7, 3, 0, '2025-01-02', 'm')",
    )


@pytest.mark.any_database
def test_unconfirmed_it_changes_nothing(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert migrate(empty_database_url).code == 0
    months_over_http.in_application(empty_database_url, use)
    before = raw_sql.snapshot(empty_database_url)
    with pytest.raises(CommandError, match=r"1 users cannot log in there.*: ayu\."):
        downgrade(empty_database_url, monkeypatch)
    assert raw_sql.snapshot(empty_database_url) == before


@pytest.mark.parametrize("revision", ["0005", "-1"])
@pytest.mark.sampled(1)
@pytest.mark.any_database
def test_no_revision_goes_back_unconfirmed(
    empty_database_url: str, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even some steps: usage without messages would be lost."""
    old_databases.build(empty_database_url, 3, rows=20)
    assert migrate(empty_database_url, "--quiet").code == 0
    before = raw_sql.snapshot(empty_database_url)
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    with pytest.raises(CommandError, match=rf"repeat the command as: .* downgrade {revision}"):
        command.downgrade(Config(toml_file=BASE_DIR / "pyproject.toml", cmd_opts=Namespace(x=[])), revision)
    command.downgrade(Config(toml_file=BASE_DIR / "pyproject.toml", cmd_opts=Namespace(x=[])), "head:-1", sql=True)
    assert raw_sql.snapshot(empty_database_url) == before


@pytest.mark.long
@pytest.mark.parametrize("generation", [None, *old_databases.GENERATIONS])
def test_the_earlier_backend_can_write_and_read(
    empty_database_url: str, generation: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if generation:
        old_databases.build(empty_database_url, generation, rows=20)
    assert migrate(empty_database_url).code == 0
    go_back_and_return(empty_database_url, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("half", [False, True], ids=["widened", "half widened"])
def test_the_earlier_backend_gets_wide_ids(
    empty_database_url: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    old_databases.build(empty_database_url, 3, rows=20)
    assert migrate(empty_database_url).code == 0
    with monkeypatch.context() as patched:
        if half:
            patched.setattr(wide_ids, "_index", interrupted)
        assert migrate(empty_database_url, "--widen-ids").code == half
    go_back_and_return(empty_database_url, monkeypatch)
    assert migrate(empty_database_url, "--widen-ids").code == 0
    kind = "SELECT format_type(atttypid, -1) FROM pg_attribute WHERE attrelid = 'messages'::regclass AND attname = 'id'"
    assert raw_sql.value(empty_database_url, kind) == "bigint"


def go_back_and_return(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downgrades a database in use, writes as the earlier backend does, and adopts it again."""
    user = months_over_http.in_application(url, use)
    record_usage(url, user)
    assert migrate(url).code == 0
    months = old_databases.rollup(url)
    downgrade(url, monkeypatch, going_back.CONFIRMATION)
    raw_sql.run(
        url,
        "INSERT INTO users (username, email, hashed_password, role, is_active) VALUES ('z', 'z', '!', 'user', true)",
        "INSERT INTO conversations (id, user_id, title, model_type) SELECT 'there', id, 't', 'Fast' FROM users"
        " WHERE username = 'z'",
        "INSERT INTO messages (conversation_id, role, content, input_tokens, output_tokens, total_tokens, model_cost)"
        " VALUES ('there', 'assistant', 'said', 5, 2, 7, 0.5)",
    )
    assert is_null(url, "users", "created_at", "username = 'z'") is False
    for column in ("created_at", "updated_at"):
        assert is_null(url, "conversations", column, "id = 'there'") is False
    assert is_null(url, "messages", "created_at", "conversation_id = 'there'") is False
    assert raw_sql.value(url, "SELECT count(*) FROM messages WHERE content IS NULL OR conversation_id IS NULL") == 0
    owned = f"SELECT count(*) FROM messages WHERE conversation_id = 'usage-{user}' AND total_tokens = 10"
    assert raw_sql.value(url, owned) == 1
    assert {"content", "conversation_id"} <= set(required(url))
    assert migrate(url).code == 0
    found = old_databases.rollup(url)
    assert {key: found.get(key) for key in months} == months


def is_null(url: str, table: str, column: str, where: str) -> Any:
    return bool(raw_sql.value(url, f"SELECT {column} IS NULL FROM {table} WHERE {where}"))


def required(url: str) -> list[str]:
    """The columns of the messages that are not null."""
    if url.startswith("sqlite"):
        return [row[1] for row in raw_sql.run(url, "PRAGMA table_info(messages)") if row[3]]
    where = "table_name = 'messages' AND is_nullable = 'NO' AND table_schema = 'public'"
    return [row[0] for row in raw_sql.run(url, f"SELECT column_name FROM information_schema.columns WHERE {where}")]


@pytest.mark.any_database
def test_a_downgrade_of_archives_must_be_confirmed(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everyone = archives.fill(database_url)
    archives.run(database_url, *everyone.archiving(tmp_path / "files"))
    months = old_databases.rollup(database_url)
    monkeypatch.setenv("DATABASE_URL", database_url)
    with pytest.raises(CommandError, match="The messages of 1 archives cannot be imported any more"):
        command.downgrade(Config(toml_file=BASE_DIR / "pyproject.toml", cmd_opts=Namespace(x=[])), "0016")
    assert len(raw_sql.contents(database_url, "archives")) == 1
    confirmed = Namespace(x=[going_back.CONFIRMATION])
    command.downgrade(Config(toml_file=BASE_DIR / "pyproject.toml", cmd_opts=confirmed), "0016")
    assert migrate(database_url, "--quiet").code == 0
    assert old_databases.rollup(database_url) == months
    assert migrate(database_url, "--verify", "--quiet").code == 0
