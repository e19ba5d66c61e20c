"""What users write is in no line of the log, whatever fails; what failed is."""

import asyncio
import functools
import io
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.exc import IntegrityError

import main
import migrate_token_data
from app import BASE_DIR, logs
from app.db import database as databases
from app.db import failures
from app.db.database import Database
from app.settings import Settings
from tests.support import openai_server, programs, raw_sql
from tests.support.accounts import SECRET_KEY, Caller
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
TABLES = {"messages": "content", "users": "email", "conversations": "title", "attempts": "key"}


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


async def try_everything(client: httpx.AsyncClient, caller: Caller, service: Caller) -> set[int]:
    """Sends the mark in every field that a user has, twice; answers with the status codes."""
    chat = {"message": f"{MARK} and more", "model": "m", "stream": False}
    record = {"id": MARK, "user_id": caller.id, "model": MARK, "input_tokens": 1, "output_tokens": 1, "content": MARK}
    account = {"username": MARK, "email": f"{MARK}@example.com", "password": f"{MARK} horse"}
    key = caller.headers | {"Idempotency-Key": MARK}
    statuses = set()
    for turn in range(2):
        records = [record | {"id": f"{MARK}{turn}"}, record | {"id": f"{MARK}-{turn}", "role": "user"}]
        for path, body, headers in [
            ("/auth/register", account, {}),
            ("/auth/register", account | {"username": f"{MARK}{turn}", "email": f"{MARK}{turn}@example.com"}, {}),
            ("/auth/login", account, {}),
            ("/chat", chat, key),
            ("/chat", chat | {"stream": True}, caller.headers),
            ("/usage/records", {"records": records}, service.headers),
        ]:
            answer = await client.post(path, json=body, headers=headers)
            assert "refused" not in answer.text
            statuses.add(answer.status_code)
        statuses.add((await client.get(f"/conversations?keyword={MARK}", headers=caller.headers)).status_code)
    return statuses


@pytest.mark.long
@pytest.mark.parametrize(("kind", "fault"), FAULTS, indirect=["kind"])
async def test_a_database_that_fails_writes_nothing_of_users(
    kind: str,
    fault: str,
    client: httpx.AsyncClient,
    database_url: str,
    ayu: Caller,
    service: Caller,
    logged: Captured,
) -> None:
    statements = BOTH | (ON_SQLITE if kind == "sqlite" else ON_POSTGRESQL)
    for table, column in TABLES.items():
        prepared = statements[fault].format(table=table, text=column)
        prepared = prepared.replace("refuse", f"refuse_{table}").replace("uq_marked", f"uq_marked_{table}")
        await asyncio.to_thread(raw_sql.run, database_url, *filter(str.strip, prepared.split(";\n")))
    statuses = await try_everything(client, ayu, service)
    if fault == "a text of other bytes":  # is read all the same
        check(logged())
        return
    assert {500, 503} & statuses, statuses
    check(logged(), "Traceback", "INSERT INTO")


@pytest.mark.parametrize("kind", ["postgresql"], indirect=True)
async def test_a_sequence_set_back_names_the_constraint(
    client: httpx.AsyncClient, database_url: str, ayu: Caller, service: Caller, logged: Captured
) -> None:
    await try_everything(client, ayu, service)
    back = "SELECT setval(pg_get_serial_sequence('messages', 'id'), 1, false)"
    await asyncio.to_thread(raw_sql.run, database_url, back)
    assert 500 in await try_everything(client, ayu, service)
    check(logged(), "UniqueViolation", "23505", "messages_pkey", "INSERT INTO messages")


@pytest.mark.parametrize("log_format", ["text", "json"], indirect=True)
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_an_upstream_that_repeats_a_prompt_writes_nothing_of_it(
    client: httpx.AsyncClient, ayu: Caller, service: Caller, upstream: OpenAIServer, logged: Captured
) -> None:
    for status in (400, 200):
        upstream.answer = lambda body, status=status: Answer(status=status, error=str(body), garbage=str(body))
        assert 502 in await try_everything(client, ayu, service)
    check(logged())


class Odd(Exception):
    """An error whose text comes from nowhere else."""

    def __str__(self) -> str:
        return MARK


def noted(error: Exception) -> Exception:
    error.add_note(MARK)
    return error


def chained(error: BaseException, cause: BaseException | None, context: BaseException | None) -> BaseException:
    error.__cause__, error.__context__ = cause, context
    return error


def endless() -> BaseException:
    one, other = ValueError(MARK), KeyError(MARK)
    one.__context__, other.__context__ = other, one
    group = ExceptionGroup(MARK, [one, other])
    other.__cause__ = group
    return group


KINDS = (ValueError, KeyError, TypeError, RuntimeError, OSError, AssertionError, OverflowError, ConnectionError)
ERRORS: dict[str, Callable[[], BaseException]] = {
    **{kind.__name__: functools.partial(kind, MARK) for kind in KINDS},
    "SyntaxError": lambda: SyntaxError(MARK, (MARK, 1, 1, MARK)),
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", MARK.encode(), 0, 1, MARK),
    "Odd": Odd,
    "PostgresError": asyncpg.PostgresError,
    "IntegrityError": lambda: IntegrityError("INSERT", {"a": MARK}, Exception(MARK)),
    "noted": lambda: noted(ValueError(1)),
    "cause": lambda: chained(RuntimeError(MARK), ValueError(MARK), None),
    "context": lambda: chained(RuntimeError(MARK), None, KeyError(MARK)),
    "group": lambda: ExceptionGroup(MARK, [ValueError(MARK), ExceptionGroup(MARK, [KeyError(MARK)])]),
    "endless": endless,
    "long": lambda: long_chain(3000),
}


def long_chain(length: int) -> BaseException:
    error: BaseException = ValueError(MARK)
    for _ in range(length):
        error = chained(ValueError(MARK), None, error)
    return error


@pytest.mark.parametrize("log_format", ["text", "json"], indirect=True)
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_an_error_of_ours_shows_where_and_not_what(
    app: FastAPI, client: httpx.AsyncClient, logged: Captured
) -> None:
    async def fail(name: str) -> None:
        text = MARK
        raise ERRORS[name]() from (KeyError(text) if name == "ValueError" else None)

    app.add_api_route("/fail", fail)
    for name, make in ERRORS.items():
        assert (await client.get(f"/fail?name={name}")).status_code in (500, 503)
        error = make()
        logging.getLogger("other").warning("an argument %s, %r", error, error)
        logging.getLogger("other").warning("by name: %(error)s", {"error": error})
        logging.getLogger("other").error(error)
        check(logged(), type(error).__name__, "Traceback", __file__, "in fail")


OTHER_WAYS = """
import asyncio, gc, logging, sys, threading, warnings
sys.path.insert(0, sys.argv[1])
from app import logs
logs.configure("DEBUG", sys.argv[2])
mark = sys.argv[3]

async def fail():
    raise ValueError(mark)

class Finalized:
    def __init__(self):
        self.itself = self

    def __del__(self):
        raise KeyError(mark)

def run():
    raise TypeError(mark)

async def main():
    task = asyncio.create_task(fail(), name=mark)
    await asyncio.sleep(0)
    del task
    gc.collect()
    context = {"message": "odd", "future": mark, "exception": OSError(mark)}
    asyncio.get_running_loop().call_exception_handler(context)

asyncio.run(main())
Finalized()
gc.collect()
thread = threading.Thread(target=run, name=mark)
thread.start()
thread.join()
warnings.simplefilter("always")
for category in (UserWarning, RuntimeWarning, DeprecationWarning, ResourceWarning):
    warnings.warn("odd: " + mark, category)
logging.getLogger("x").warning("%d", mark)
try:
    int(mark)
except ValueError:
    raise LookupError(mark)
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_tasks_threads_finalizers_and_warnings_write_nothing(log_format: Format, tmp_path: Path) -> None:
    ended = programs.run(["-c", OTHER_WAYS, BASE_DIR, log_format, MARK], tmp_path, {})
    kinds = ("ValueError", "KeyError", "TypeError", "OSError", "LookupError")
    warned = ("UserWarning", "RuntimeWarning", "DeprecationWarning", "ResourceWarning")
    check(ended.out + ended.err, "never retrieved", "in run", "in fail", "Finalized.__del__", *kinds, *warned)
    assert ended.code == 1


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
