"""Rows that other tools wrote, with values of any kind in any column, are shown, sent to the model, and settled."""

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from app.db.database import Database
from tests.support import accounts, invariants, openai_server, raw_sql
from tests.support.accounts import Caller
from tests.support.openai_server import OpenAIServer

VALUES = {
    "null": "NULL",
    "bytes": "x'6869ff00'",
    "bytes that are text": "CAST('hi' AS BLOB)",
    "text that is no UTF-8": "CAST(x'6869ff' AS TEXT)",
    "text with NUL": "'a' || char(0) || 'b'",
    "empty text": "''",
    "text": "'yesterday'",
    "a number": "7",
    "a huge number": "9223372036854775807",
    "a negative number": "-1",
    "a fraction": "1.5",
    "infinity": "9e999",
}
"""SQLite's columns hold values of any type."""

OF_MESSAGES = (
    *("role", "content", "created_at", "status", "model", "input_tokens", "output_tokens", "cached_input_tokens"),
    *("cost", "price_source", "usage_estimated", "request_hash", "turn", "finish_reason", "usage_details"),
    *("parent_message_id", "branch_id", "is_active_branch", "image_urls", "document_context"),
)
OF_CONVERSATIONS = (
    *("title", "model_type", "created_at", "updated_at"),
    *("parent_conversation_id", "edited_message_id", "category_id"),
)
ROLES = {"user", "assistant", "system"}


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The application asks the tests' model, of a database whose columns allow null, as an old one's do."""
    for table, column in (("messages", "role"), ("conversations", "title"), ("conversations", "model_type")):
        allow_null(database_url, table, column)
    return openai_server.settings(database_url, model)


def allow_null(url: str, table: str, column: str) -> None:
    if not url.startswith("sqlite"):
        raw_sql.run(url, f"ALTER TABLE {table} ALTER {column} DROP NOT NULL")
        return
    strict, loose = f"{column} VARCHAR NOT NULL", f"{column} VARCHAR"
    raw_sql.run(
        url,
        "PRAGMA writable_schema = ON",
        f"UPDATE sqlite_master SET sql = replace(sql, '{strict}', '{loose}') WHERE type = 'table' AND name = '{table}'",
    )


async def execute(database: Database, statement: str, **values: Any) -> None:
    async with database.sessions.begin() as session:
        await session.execute(text(statement), values)


async def ask(client: httpx.AsyncClient, caller: Caller, **fields: Any) -> httpx.Response:
    return await client.post("/chat", headers=caller.headers, json={"message": "Hi", "stream": False, **fields})


async def new_conversation(client: httpx.AsyncClient, caller: Caller) -> str:
    answer = await ask(client, caller)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["conversation_id"])


async def add_message(database: Database, conversation_id: str, owner: Caller, **columns: str) -> None:
    """A message as another tool writes it; the columns are SQL."""
    values = {"role": "'user'", "content": "'an old one'", "created_at": "'2024-06-15 12:00:00'"} | columns
    names = ", ".join(values)
    statement = f"INSERT INTO messages (conversation_id, user_id, {names}) VALUES (:id, :owner, "
    await execute(database, f"{statement}{', '.join(values.values())})", id=conversation_id, owner=owner.id)


async def check_shown(client: httpx.AsyncClient, caller: Caller, conversation_id: str) -> list[dict[str, Any]]:
    """Demands that the conversation is listed and shown; returns its messages."""
    listed = await client.get("/conversations", headers=caller.headers)
    assert listed.status_code == 200, listed.text
    assert conversation_id in {item["id"] for item in listed.json()["conversations"]}
    shown = await client.get(f"/conversations/{conversation_id}", headers=caller.headers)
    assert shown.status_code == 200, shown.text
    messages: list[dict[str, Any]] = shown.json()["messages"]
    for message in messages:
        assert isinstance(message["role"], str)
        assert isinstance(message["content"], str | None)
        assert isinstance(message["model"], str | None)
        assert isinstance(message["status"], str)
    return messages


async def check_goes_on(
    client: httpx.AsyncClient, caller: Caller, conversation_id: str, model: OpenAIServer
) -> list[dict[str, Any]]:
    """Demands that the conversation goes on; returns what the model was sent."""
    answer = await ask(client, caller, conversation_id=conversation_id, message="And on")
    assert answer.status_code == 200, answer.text
    sent: list[dict[str, Any]] = model.requests[-1].body["messages"]
    assert sent[-1] == {"role": "user", "content": "And on"}
    for prompt in sent:
        assert prompt["role"] in ROLES
        assert isinstance(prompt["content"], str)
        assert prompt["content"]
        assert "\x00" not in prompt["content"]
    return sent


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("column", OF_MESSAGES)
@pytest.mark.sampled(2)
async def test_a_message_with_any_value_is_shown_and_sent(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, column: str
) -> None:
    for value in VALUES.values():
        conversation_id = await new_conversation(client, ayu)
        await add_message(database, conversation_id, ayu, **{column: value})
        assert len(await check_shown(client, ayu, conversation_id)) == 3, value
        await check_goes_on(client, ayu, conversation_id, model)
    await invariants.check(database)


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("column", OF_CONVERSATIONS)
@pytest.mark.sampled(1)
async def test_a_conversation_with_any_value_is_shown_and_goes_on(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, column: str
) -> None:
    for value in VALUES.values():
        conversation_id = await new_conversation(client, ayu)
        await execute(database, f"UPDATE conversations SET {column} = {value} WHERE id = :id", id=conversation_id)
        await check_shown(client, ayu, conversation_id)
        await check_goes_on(client, ayu, conversation_id, model)
        await client.delete(f"/conversations/{conversation_id}", headers=ayu.headers)


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_conversations_with_odd_ids_do_not_hide_the_others(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    conversation_id = await new_conversation(client, ayu)
    for value in set(VALUES.values()) - {"NULL"}:
        columns = "id, user_id, title, model_type, created_at"
        statement = f"INSERT INTO conversations ({columns}) VALUES ({value}, :owner, 'x', 'y', '2024-06-15')"
        await execute(database, statement, owner=ayu.id)
    await check_shown(client, ayu, conversation_id)
    listed = (await client.get("/conversations", headers=ayu.headers)).json()
    assert len(listed["conversations"]) == listed["total"]


async def test_what_is_null_is_shown_plainly(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    conversation_id = await new_conversation(client, ayu)
    for column in ("role", "content", "status", "model"):
        await add_message(database, conversation_id, ayu, **{column: "NULL"})
    await execute(database, "UPDATE messages SET created_at = NULL WHERE content = 'an old one'")
    await execute(database, "UPDATE conversations SET title = NULL, model_type = NULL, created_at = NULL")
    no_role, no_content, *_ = (await check_shown(client, ayu, conversation_id))[2:]
    assert (no_role["role"], no_role["content"], no_role["created_at"]) == ("user", "an old one", None)
    assert (no_content["role"], no_content["content"], no_content["status"]) == ("user", None, "complete")
    sent = await check_goes_on(client, ayu, conversation_id, model)
    assert sent[2:-1] == [], "questions without an answer are not sent again"
    await add_message(database, conversation_id, ayu, role="'assistant'", status="NULL", model="NULL")
    sent = await check_goes_on(client, ayu, conversation_id, model)
    assert [prompt["role"] for prompt in sent[2:]] == ["user", "assistant"] * 2 + ["user"]


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_bytes_are_shown_and_sent_as_text(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    conversation_id = await new_conversation(client, ayu)
    await add_message(database, conversation_id, ayu, content="x'6869ff'", role="x'617373697374616e74'")
    await add_message(database, conversation_id, ayu, content="CAST(x'6869ff' AS TEXT)", role="'narrator'")
    await execute(database, "UPDATE conversations SET title = x'6869ff'")
    shown = (await check_shown(client, ayu, conversation_id))[2:]
    assert [(message["role"], message["content"]) for message in shown] == [
        ("assistant", "hi\ufffd"),
        ("narrator", "hi\ufffd"),
    ]
    listed = (await client.get("/conversations", headers=ayu.headers)).json()["conversations"]
    assert listed[0]["title"] == "hi\ufffd"
    sent = await check_goes_on(client, ayu, conversation_id, model)
    assert sent[1]["content"].endswith("\n\nhi\ufffd"), "an answer without a question continues the one before"
    assert sent[2:-1] == [], "a question without an answer is not sent again"
    await add_message(database, conversation_id, ayu, content="'Ho'", role="'assistant'")
    sent = await check_goes_on(client, ayu, conversation_id, model)
    assert {"role": "user", "content": "hi\ufffd"} in sent


@pytest.mark.parametrize("kind", ["postgresql"], indirect=True)
@pytest.mark.parametrize("instant", ["infinity", "-infinity", "0044-03-15 BC", "294276-12-31"])
async def test_instants_that_python_does_not_know_are_shown_as_none(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, instant: str
) -> None:
    conversation_id = await new_conversation(client, ayu)
    await execute(database, f"UPDATE messages SET created_at = '{instant}' WHERE role = 'user'")
    await execute(database, f"UPDATE conversations SET created_at = '{instant}'")
    question, answer = await check_shown(client, ayu, conversation_id)
    assert question["created_at"] is None
    assert answer["created_at"] is not None
    await check_goes_on(client, ayu, conversation_id, model)


async def settled(database: Database) -> list[Any]:
    """The statuses of all turns, once none is pending, or after 20 seconds."""
    for _ in range(400):
        async with database.reads() as session:
            statement = text("SELECT status FROM messages WHERE role = 'assistant' OR status <> 'complete' ORDER BY id")
            statuses = list(await session.scalars(statement))
        if "pending" not in statuses:
            break
        await asyncio.sleep(0.05)
    return statuses


@pytest.fixture
async def odd_turns(
    request: pytest.FixtureRequest, database: Database, app_settings: dict[str, Any], ayu: Caller
) -> int:
    """Turns whose process died, each with an odd value in one column, of the answer or of the question, or in none."""
    table, column = request.param
    pending = {"content": "NULL", "role": "'assistant'", "status": "'pending'", "model": "'gpt-4o'"}
    values = [None, *VALUES.values(), None]
    for number, value in enumerate(values):
        odd = {} if value is None else {column: value}
        statement = "INSERT INTO conversations (id, user_id, title, model_type) VALUES (:id, :owner, 'x', 'y')"
        await execute(database, statement, id=f"c{number}", owner=ayu.id)
        await add_message(database, f"c{number}", ayu, **(odd if table == "question" else {}))
        turn = pending | {"turn": f"'gone/1/1.00/{number}'"}
        await add_message(database, f"c{number}", ayu, **(turn | (odd if table == "answer" else {})))
    return len(values)


OF_TURNS = [("answer", column) for column in OF_MESSAGES if column != "status"]
OF_TURNS += [("question", column) for column in ("role", "content", "created_at", "status")]


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("odd_turns", OF_TURNS, indirect=True, ids=" ".join)
@pytest.mark.sampled(4)
async def test_a_turn_with_any_value_is_settled_with_the_others(
    odd_turns: int, app: FastAPI, database: Database
) -> None:
    statuses = await settled(database)
    assert statuses.count("failed") == odd_turns, statuses
    async with database.reads() as session:  # keep what they hold, as rows that were not adopted yet
        statement = text("SELECT id FROM messages WHERE input_tokens IS NOT NULL AND usage_date IS NULL")
        skipped = set(await session.scalars(statement))
    await invariants.check(database, skipped=skipped)


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("column", ["username", "email"])
async def test_users_with_undecodable_names_are_shown(
    client: httpx.AsyncClient, database: Database, ayu: Caller, column: str
) -> None:
    admin = await accounts.add(database, "root", role="admin")
    async with database.sessions.begin() as session:
        await session.execute(text(f"UPDATE users SET {column} = x'ff41' WHERE id = {ayu.id}"))
    shown = await client.get("/auth/me", headers=ayu.headers)
    assert (shown.status_code, shown.json()[column]) == (200, "\ufffdA")
    listed = await client.get("/admin/users", headers=admin.headers)
    assert [user[column] for user in listed.json()["users"] if user["id"] == ayu.id] == ["\ufffdA"]
