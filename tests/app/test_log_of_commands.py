"""What users write is in no line of the commands, the script, or a start that fails."""

import io
import logging
import sqlite3
from contextlib import suppress
from typing import Any

import asyncpg
import pytest

import main
import migrate_token_data
from app.db import failures
from app.db.database import Database
from app.settings import Settings
from tests.support import raw_sql
from tests.support.accounts import SECRET_KEY
from tests.support.secret_marks import (
    BY_TRIGGER,
    MARK,
    ON_SQLITE,
    REFUSE,
    Captured,
    app_settings,
    check,
    log_format,
    logged,
    upstream,
)

__all__ = ["app_settings", "log_format", "logged", "upstream"]


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_a_start_or_an_end_that_fails_writes_nothing(
    app_settings: dict[str, Any], logged: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = main.create_app(Settings.load(**app_settings))
    sent: list[Any] = []

    async def fail(_self: Database) -> None:
        raise ValueError(MARK)

    async def receive() -> Any:
        return {"type": "lifespan.shutdown" if sent else "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    monkeypatch.setattr(Database, "close", fail)
    with suppress(Exception):
        await app({"type": "lifespan", "state": {}}, receive, send)
    assert sent[-1]["type"] == "lifespan.shutdown.failed"
    check(str(sent) + logged(), "ValueError", "in fail")


@pytest.mark.parametrize("flags", [["create-service", MARK], ["create-admin", MARK, "--email", f"{MARK}@example.com"]])
def test_a_command_that_fails_writes_one_line_without_users(
    kind: str,
    flags: list[str],
    database_url: str,
    logged: Captured,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    trigger = (
        ON_SQLITE["a text that is no JSON"]
        if kind == "sqlite"
        else REFUSE.format(BY_TRIGGER["an assertion"], "{table}")
    )
    raw_sql.run(
        database_url, *[part for part in trigger.format(table="users", text="email").split(";\n") if part.strip()]
    )
    monkeypatch.chdir(".")
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("SECRET_KEY", SECRET_KEY)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{MARK} horse battery\n"))
    root = logging.getLogger()
    kept = root.handlers[:]
    try:
        assert main.main(flags) == 2
        said = capfd.readouterr()
        assert said.err.count("\n") == 1
        check(said.out + said.err + logged(), "database ")
        with monkeypatch.context() as broken:
            broken.setattr(Database, "open", lambda *_args, **_settings: raise_marked())
            assert main.main(flags) == 2
            assert migrate_token_data.main(["--database-url", database_url, "--quiet"]) == 2
    finally:
        root.handlers[:] = kept
    said = capfd.readouterr()
    assert said.err.count("\n") == 2, said.err
    check(said.out + said.err + logged(), "ValueError at main.py:", "app/db/migrations.py:")


def raise_marked() -> None:
    raise ValueError(MARK)


WANTED = {
    "sqlite": ("UNIQUE constraint failed: foundation_settings.name", "SQLITE_CONSTRAINT"),
    "postgresql": ("duplicate key value violates unique constraint", "23505", "table foundation_settings"),
}


def test_the_operator_reads_what_went_wrong(kind: str, database_url: str) -> None:
    with pytest.raises((sqlite3.Error, asyncpg.PostgresError)) as failed:
        raw_sql.run(database_url, *["INSERT INTO foundation_settings VALUES ('a', 'b')"] * 2)
    said = failures.describe(failed.value)
    assert said.isprintable()
    assert "already exists" not in said
    for words in WANTED[kind]:
        assert words in said
