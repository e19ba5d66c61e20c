"""A mark that stands for what users write, and everything that is written to the log."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

import main
from app import logs
from app.db import database as databases
from tests.support import openai_server
from tests.support.accounts import SECRET_KEY
from tests.support.openai_server import Answer, OpenAIServer

MARK = "qzv" + "marker"  # in two parts: a traceback shows lines of this file
Format = Literal["text", "json"]
Captured = Callable[[], str]

REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} RETURN NEW; END $$;
    CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION refuse();
"""
ROW = "CAST(to_jsonb(NEW) AS text)"
BY_TRIGGER = {
    "a trigger that aborts": f"RAISE EXCEPTION 'refused %', {ROW};",
    "every field of an error": f"RAISE EXCEPTION USING ERRCODE = 'unique_violation', MESSAGE = {ROW}, DETAIL = {ROW},"
    f" HINT = {ROW}, CONSTRAINT = {ROW}, COLUMN = {ROW}, TABLE = {ROW}, DATATYPE = {ROW}, SCHEMA = {ROW};",
    "a deadlock": f"RAISE EXCEPTION USING ERRCODE = '40P01', MESSAGE = {ROW}, DETAIL = {ROW};",
    "an outage": f"RAISE EXCEPTION USING ERRCODE = '57014', MESSAGE = {ROW};",
    "a code of the operator's own": f"RAISE EXCEPTION USING ERRCODE = 'MY001', MESSAGE = {ROW};",
    "a text that is no number": f"PERFORM CAST({ROW} AS integer);",
    "a text that is no date": f"PERFORM CAST({ROW} AS date);",
    "a statement made of it": f"EXECUTE 'SELECT ' || {ROW};",
    "a connection that ends": "PERFORM pg_terminate_backend(pg_backend_pid());",
    "a statement that takes too long": "PERFORM pg_sleep(5);",
    "an assertion": f"ASSERT false, {ROW};",
}
ON_POSTGRESQL = {name: REFUSE.format(body, "{table}") for name, body in BY_TRIGGER.items()} | {
    "a check": "ALTER TABLE {table} ADD CONSTRAINT ck_marked CHECK ({text} NOT LIKE '%" + MARK + "%') NOT VALID",
    "a value too long": "ALTER TABLE {table} ALTER {text} TYPE varchar(3) USING substr({text}, 1, 3)",
    "a column that must be set": "ALTER TABLE {table} ADD COLUMN needed text NOT NULL DEFAULT 1;\n"
    "ALTER TABLE {table} ALTER needed DROP DEFAULT",
    "a column that is gone": "ALTER TABLE {table} RENAME COLUMN {text} TO other",
    "another type": "ALTER TABLE {table} ALTER {text} TYPE bigint USING (random() * 1e18)::bigint",
    "no table": "ALTER TABLE {table} RENAME TO other_{table}",
}
BEFORE = "CREATE TRIGGER refuse BEFORE INSERT ON {table} BEGIN "
AFTER = "CREATE TRIGGER refuse AFTER INSERT ON {table} BEGIN "
ON_SQLITE = {
    "a trigger that aborts": BEFORE + "SELECT RAISE(ABORT, 'no'); END",
    "a trigger that rolls back": BEFORE + "SELECT RAISE(ROLLBACK, 'no'); END",
    "a path that is none": BEFORE + "SELECT json_extract('1', NEW.{text}); END",
    "a text that is no JSON": BEFORE + "SELECT json(NEW.{text}); END",
    "a column that must be set": "ALTER TABLE {table} ADD COLUMN needed text NOT NULL DEFAULT 1;\n"
    + AFTER
    + "UPDATE {table} SET needed = NULL; END",
    "a column that is gone": "ALTER TABLE {table} RENAME COLUMN {text} TO other",
    "no table": "ALTER TABLE {table} RENAME TO other_{table}",
    "a text of other bytes": AFTER + "UPDATE {table} SET {text} = CAST(x'ff' || {text} AS text); END",
}
BOTH = {"a value that is there already": "CREATE UNIQUE INDEX uq_marked ON {table} ((substr({text}, 1, 3)))"}
FAULTS = [("postgresql", name) for name in ON_POSTGRESQL | BOTH] + [("sqlite", name) for name in ON_SQLITE | BOTH]


@pytest.fixture
def upstream() -> Iterator[OpenAIServer]:
    """A model's service that repeats what it was sent in the text of its error."""
    with openai_server.running() as server:
        server.answer = lambda body: Answer(status=400, error=json.dumps(body))
        yield server


@pytest.fixture
def app_settings(database_url: str, upstream: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings of the application under test, which logs all it can."""
    monkeypatch.setattr(main, "STATEMENT_TIMEOUT_MS", 300)
    monkeypatch.setattr(databases, "MAX_ATTEMPTS", 2)
    llm = {"llm_base_url": upstream.url, "llm_model": "m"}
    return {"database_url": database_url, "secret_key": SECRET_KEY, "log_level": "DEBUG", **llm}


@pytest.fixture
def log_format(request: pytest.FixtureRequest) -> Format:
    """`LOG_FORMAT`."""
    return getattr(request, "param", "text")


@pytest.fixture
def logged(
    log_format: Format, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[Captured]:
    """What was written since: to the log, to the log of anybody else who listens, to the terminal."""
    root, stream = logging.getLogger(), io.StringIO()
    level = root.level
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter() if log_format == "json" else logs.TextFormatter())
    root.addHandler(handler)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the client of the tests
    root.setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG)

    def written() -> str:
        records = "".join(str(vars(record)) for record in caplog.records)
        return stream.getvalue() + caplog.text + records + "".join(capfd.readouterr())

    try:
        yield written
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def check(written: str, *words: str) -> None:
    """Demands that nothing of a user's is in the log, and these words are."""
    assert MARK not in written.lower()
    for word in words:
        assert word in written
