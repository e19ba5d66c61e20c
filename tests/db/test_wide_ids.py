"""Ids of adopted messages become 64-bit, beside servers, and refused where other objects depend on them."""

import asyncio
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import bindparam, select, text

from app.db import wide_ids
from app.db.database import Database, Session
from models import Message
from services.usage import token_usage
from services.usage.token_usage import Entry, Usage
from tests.support import accounts, commands, invariants, months_over_http, old_databases, poolers, raw_sql
from tests.support.commands import migrate
from tests.support.old_copies import OldCopy
from tests.support.old_databases import OldDatabase
from tests.support.poolers import opened

WIDE = {
    ("conversations", "edited_message_id"),
    ("feedback", "message_id"),
    ("messages", "id"),
    ("messages", "parent_message_id"),
}
OF_ID = select(Message.id, Message.parent_message_id).where(Message.id == bindparam("id_"))


@pytest.fixture
def kind() -> str:
    """The only kind of database that has 32-bit ids."""
    return "postgresql"


@pytest.fixture
def adopted(old_copy: OldCopy) -> OldDatabase:
    """An adopted old database, with 32-bit ids."""
    return old_copy(3, "--quiet", rows=50)


def widen(url: str) -> str:
    """Widens the ids; what the script says on standard output."""
    outcome = migrate(url, "--widen-ids", "--quiet")
    assert outcome.code == 0, outcome.err
    return outcome.out


def ids_of(url: str) -> dict[tuple[str, str], Any]:
    """Type, nullability and default of the columns with ids of messages."""
    return {row[:2]: row[2:] for row in raw_sql.schema(url)["columns"] if row[:2] in WIDE}


@pytest.mark.parametrize("generation", old_databases.GENERATIONS)
@pytest.mark.long
def test_a_widened_database_equals_a_fresh_one(old_copy: OldCopy, generation: int, database_url: str) -> None:
    old = old_copy(generation, "--quiet", rows=50)
    before, contents = raw_sql.schema(old.url), old.contents()
    assert "messages.id" in widen(old.url)
    after, fresh = raw_sql.schema(old.url), raw_sql.schema(database_url)
    assert ids_of(old.url) == ids_of(database_url)
    assert "_wide" not in str(after)
    assert {row for row in fresh["indexes"] if "message" in row[1]} <= set(after["indexes"])
    assert set(before["indexes"]) - set(after["indexes"]) <= {
        ("ix_messages_id", "CREATE INDEX ix_messages_id ON public.messages USING btree (id)")
    }
    assert after["constraints"] == before["constraints"]
    sequence = "SELECT data_type::text, pg_get_serial_sequence('messages', 'id') FROM pg_sequences"
    sequence += " WHERE sequencename = 'messages_id_seq'"
    assert raw_sql.run(old.url, sequence) == [("bigint", "public.messages_id_seq")]
    triggers = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'foundation_wide%'"
    assert raw_sql.value(old.url, triggers) == 0
    assert old.contents() == contents
    assert migrate(old.url, "--verify").code == 0
    assert old_databases.rollup(old.url) == old.months()


def test_users_chat_with_ids_above_32_bits(adopted: OldDatabase) -> None:
    widen(adopted.url)
    raw_sql.run(adopted.url, f"ALTER SEQUENCE messages_id_seq RESTART {2**31 + 5}")

    async def work(client: httpx.AsyncClient) -> None:
        ayu = await accounts.register(client, "ayu")

        async def send(method: str, path: str, **body: Any) -> Any:
            answer = await client.request(method, path, headers=ayu.headers, json=body or None)
            assert answer.status_code in (200, 204), answer.text
            return answer.json() if answer.content else None

        first = await send("POST", "/chat", message="Hi", stream=False)
        message_id = first["message"]["id"]
        assert message_id > 2**31
        given = await send("POST", "/feedback", message_id=message_id, feedback_type="like")
        assert await send("GET", f"/feedback/message/{message_id}") == [given]
        asked = (await send("GET", f"/conversations/{first['conversation_id']}"))["messages"][0]["id"]
        answer = await client.put(f"/messages/{asked}", headers=ayu.headers, json={"content": "Hello"})
        assert answer.status_code == 200, answer.text

    months_over_http.in_application(adopted.url, work)
    edited = raw_sql.run(adopted.url, f"SELECT 1 FROM conversations WHERE edited_message_id > {2**31}")
    assert len(edited) == 1
    raw_sql.run(
        adopted.url,
        "INSERT INTO messages (conversation_id, role, content, input_tokens, output_tokens) VALUES"
        f" ('{old_databases.conversation_of(adopted)}', 'assistant', 'of an old process', 5, 2)",
    )
    assert migrate(adopted.url, "--quiet").code == 0
    assert raw_sql.run(adopted.url, f"SELECT 1 FROM messages WHERE id > {2**31} AND user_id IS NULL") == []
    assert migrate(adopted.url, "--verify").code == 0


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_wide_ids_stay_as_they_are(database_url: str) -> None:
    before = raw_sql.snapshot(database_url)
    assert widen(database_url) == "ids of messages have 64 bits already\n"
    assert raw_sql.snapshot(database_url) == before


def test_a_second_run_finds_nothing_to_do(adopted: OldDatabase) -> None:
    widen(adopted.url)
    before = raw_sql.snapshot(adopted.url)
    assert widen(adopted.url) == "ids of messages have 64 bits already\n"
    assert raw_sql.snapshot(adopted.url) == before


UNKNOWN = {
    "view report": ["CREATE VIEW report AS SELECT id FROM messages"],
    "index ix_own": ["CREATE INDEX ix_own ON messages (role, id)"],
    "constraint own_message_id_fkey": ["CREATE TABLE own (message_id int REFERENCES messages)"],
    "publication own": ["CREATE PUBLICATION own FOR TABLE messages (id)"],
    "trigger own on table feedback": [
        "CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER own BEFORE UPDATE OF message_id ON feedback FOR EACH ROW EXECUTE FUNCTION own()",
    ],
    "trigger own on table messages": [
        "CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER own AFTER UPDATE ON messages FOR EACH ROW EXECUTE FUNCTION own()",
    ],
    "sequence messages_id_seq": [
        "ALTER TABLE messages ALTER id DROP DEFAULT",
        "DROP SEQUENCE messages_id_seq",
        "ALTER TABLE messages ALTER id ADD GENERATED BY DEFAULT AS IDENTITY (RESTART 5000)",
    ],
    "default of messages.id": ["ALTER SEQUENCE messages_id_seq OWNED BY NONE"],
    "inheritance of table messages": ["CREATE TABLE own () INHERITS (messages)"],
    "privileges on column messages.id": ["GRANT SELECT (id) ON messages TO public"],
    "column twice of table messages": ["ALTER TABLE messages ADD twice bigint GENERATED ALWAYS AS (2 * id) STORED"],
}


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.sampled(3)
def test_unknown_objects_are_named_and_nothing_changes(adopted: OldDatabase, name: str) -> None:
    raw_sql.run(adopted.url, *UNKNOWN[name])
    before = raw_sql.snapshot(adopted.url)
    outcome = migrate(adopted.url, "--widen-ids", "--quiet")
    assert (outcome.code, outcome.out) == (2, "")
    assert name in outcome.err
    assert outcome.err.count("\n") == 1
    assert raw_sql.snapshot(adopted.url) == before


@pytest.fixture(params=["direct", "transaction", "session"])
def address(adopted: OldDatabase, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of the adopted database, also through PgBouncer."""
    if request.param == "direct":
        yield adopted.url
    else:
        with poolers.running(adopted.url, request.param) as url:
            yield url


@pytest.mark.long
async def test_prepared_statements_of_servers_do_not_fail(adopted: OldDatabase, address: str) -> None:
    async with opened(address) as database:
        await use(database)
        await asyncio.to_thread(widen, address)
        await use(database)
        await invariants.check(database, skipped=await unadopted(database))


async def use(database: Database) -> None:
    """Reads and writes on several connections at once, as a server does."""

    async def write() -> None:
        usage = Usage(input_tokens=3, output_tokens=4)
        entry = Entry(user_id=1, role="assistant", created_at=datetime(2024, 3, 5, tzinfo=UTC), usage=usage)
        await database.transaction(partial(token_usage.record, entry=entry, zone=UTC))

    async def read() -> None:
        assert (await database.fetch(OF_ID, id_=1))[0][0] == 1
        assert await database.scalar(select(Message.id).where(Message.id == 1)) == 1

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(write())
            group.create_task(read())


async def unadopted(database: Database) -> set[int]:
    """The old messages that cannot be counted."""
    carries = Message.role == "assistant", Message.input_tokens.is_not(None), Message.usage_date.is_(None)

    async def work(session: Session) -> set[int]:
        return set(await session.scalars(select(Message.id).where(*carries)))

    return await database.read(work)


async def test_locked_rows_are_filled_by_a_later_pass(adopted: OldDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    await asyncio.to_thread(interrupt, adopted.url, "_prepare", monkeypatch)
    async with opened(adopted.url) as database:
        async with database.sessions.begin() as session:
            await session.execute(text("SELECT 1 FROM conversations WHERE edited_message_id IS NULL FOR UPDATE"))
            await session.execute(text("SELECT 1 FROM messages WHERE id % 3 = 0 FOR UPDATE"))
            run = asyncio.create_task(asyncio.to_thread(widen, adopted.url))
            while await rows(adopted.url, "SELECT 1 FROM messages WHERE id_wide IS NULL AND id % 3 <> 0"):
                assert not run.done(), run.result()
        assert "messages.id" in await run
    assert await rows(adopted.url, "SELECT 1 FROM messages WHERE id IS NULL") == []


async def rows(url: str, statement: str) -> list[raw_sql.Row]:
    return await asyncio.to_thread(raw_sql.run, url, statement)


def interrupt(url: str, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Widens up to the end of a step."""
    real = getattr(wide_ids, step)

    async def interrupted(*arguments: Any, **options: Any) -> None:
        await real(*arguments, **options)
        if not options.get("table") or options["table"].name == "feedback":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(wide_ids, step, interrupted)
        assert migrate(url, "--widen-ids", "--quiet").code == 1


@pytest.mark.long
@pytest.mark.parametrize("step", ["_copy", "_index", "_swap"])
def test_an_interrupted_run_is_continued(adopted: OldDatabase, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = adopted.contents()
    interrupt(adopted.url, step, monkeypatch)
    raw_sql.run(adopted.url, "INSERT INTO feedback (message_id, user_id, feedback_type) VALUES (1, 1, 'like')")
    if step == "_index":
        invalid = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{}'::regclass"
        raw_sql.run(
            adopted.url, *(invalid.format(name) for name in ("messages_pkey_wide", "ix_feedback_message_id_wide"))
        )
    assert "messages.id" in widen(adopted.url)
    assert "_wide" not in str(raw_sql.schema(adopted.url))
    raw_sql.run(adopted.url, "DELETE FROM feedback WHERE description IS NULL")
    assert adopted.contents() == contents


def test_foreign_keys_left_unchecked_are_checked_later(adopted: OldDatabase) -> None:
    widen(adopted.url)
    key = "feedback_message_id_fkey"
    raw_sql.run(
        adopted.url,
        f"ALTER TABLE feedback DROP CONSTRAINT {key}",
        f"ALTER TABLE feedback ADD CONSTRAINT {key} FOREIGN KEY (message_id) REFERENCES messages (id) NOT VALID",
    )
    widen(adopted.url)
    assert raw_sql.value(adopted.url, f"SELECT convalidated FROM pg_constraint WHERE conname = '{key}'")


@pytest.mark.long
def test_a_sequence_that_ends_names_the_flag(adopted: OldDatabase, tmp_path: Path) -> None:
    conversation = old_databases.conversation_of(adopted)
    columns = "INSERT INTO messages (id, conversation_id, role, content) VALUES"
    raw_sql.run(adopted.url, f"{columns} ({2**31 - 1 - 2**28}, '{conversation}', 'user', '{uuid.uuid4()}')")
    migrate(adopted.url, "--quiet")
    assert "--widen-ids" in commands.run(["main.py", "list-keys"], tmp_path, DATABASE_URL=adopted.url).err
    widen(adopted.url)
    assert "--widen-ids" not in commands.run(["main.py", "list-keys"], tmp_path, DATABASE_URL=adopted.url).err


@pytest.mark.parametrize("flag", ["--verify", "--dry-run", "--redate", "--finish", "--recount", "--json"])
def test_widening_is_refused_with_other_work(database_url: str, flag: str) -> None:
    outcome = migrate(database_url, "--widen-ids", flag)
    assert outcome.code == 2
    assert "--widen-ids" in outcome.err
