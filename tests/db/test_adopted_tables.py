"""Preferences and feedback in tables that other tools changed: columns missing, rows twice, of users who are gone."""

import asyncio
from typing import Any

import httpx
import pytest

from app.db import migrations
from tests.support import accounts, months_over_http, old_databases, problems, raw_sql
from tests.support.accounts import PASSWORD, Caller
from tests.support.old_databases import USERS

TABLES = ("feedback", "user_preferences", "user_model_categories")
GONE = 100_000
ADMIN = Caller(USERS[1], old_databases.username(USERS[1]))
USER = Caller(USERS[0], old_databases.username(USERS[0]))


def old(url: str, *made: str) -> int:
    """An old database whose tables are made by these statements; returns the id of one of the user's answers."""
    old_databases.build(url, 3, rows=20)
    cascade = "" if url.startswith("sqlite") else " CASCADE"
    raw_sql.run(url, *(f"DROP TABLE {table}{cascade}" for table in TABLES), *made)
    own = f"SELECT id FROM conversations WHERE user_id = {USER.id}"
    answers = f"SELECT min(id) FROM messages WHERE role = 'assistant' AND conversation_id IN ({own})"
    return int(raw_sql.value(url, answers))


def key(url: str) -> str:
    return "id INTEGER PRIMARY KEY" if url.startswith("sqlite") else "id SERIAL PRIMARY KEY"


def check(url: str, message_id: int) -> dict[str, Any]:
    """Demands that preferences and feedback are read, replaced and deleted, and the user too; returns what was read."""
    found: dict[str, Any] = {}

    async def work(client: httpx.AsyncClient) -> None:
        async def send(method: str, path: str, json: Any = None) -> Any:
            answer = await client.request(method, path, json=json, headers=USER.headers)
            assert answer.status_code == 200, answer.text
            return answer.json()

        feedback = f"/feedback/message/{message_id}"
        found["preferences"] = await send("GET", "/preferences")
        found["feedback"] = await send("GET", feedback)
        stored = await send("PUT", "/preferences", {"job": "pilot"})
        assert stored == await send("GET", "/preferences")
        assert (stored["job"], stored["nickname"]) == ("pilot", found["preferences"]["nickname"])
        given = await send("POST", "/feedback", {"message_id": message_id, "feedback_type": "dislike"})
        assert await send("GET", feedback) == [given]
        await send("POST", "/chat", {"message": "Hi", "stream": False})
        await send("DELETE", f"/feedback/{given['id']}")
        assert await send("GET", feedback) == []
        await send("POST", "/feedback", {"message_id": message_id, "feedback_type": "like", "description": "clear"})
        assert (await client.delete(f"/conversations/{conversation}", headers=USER.headers)).status_code == 204
        problems.check(await client.get(feedback, headers=USER.headers), 404)
        deleted = await client.delete(f"/auth/users/{USER.id}", headers=ADMIN.headers)
        assert deleted.status_code == 200, deleted.text
        problems.check(await client.get("/preferences", headers=USER.headers), 401)

    conversation = raw_sql.value(url, f"SELECT conversation_id FROM messages WHERE id = {message_id}")
    raw_sql.run(url, f"UPDATE users SET role = 'admin' WHERE id = {ADMIN.id}")
    asyncio.run(migrations.upgrade(url))
    months_over_http.in_application(url, work)
    assert raw_sql.value(url, f"SELECT count(*) FROM feedback WHERE message_id = {message_id}") == 0
    return found


@pytest.mark.any_database
def test_tables_with_the_fewest_columns_are_adopted(empty_database_url: str) -> None:
    url = empty_database_url
    made = f"CREATE TABLE user_preferences ({key(url)}, user_id INTEGER)"
    message_id = old(url, made, f"CREATE TABLE feedback ({key(url)}, message_id INTEGER)")
    raw_sql.run(url, f"INSERT INTO feedback (message_id) VALUES ({message_id})")
    found = check(url, message_id)
    assert (found["preferences"]["id"], found["feedback"]) == (None, [])


@pytest.mark.any_database
def test_rows_twice_and_empty_rows_are_served(empty_database_url: str) -> None:
    url = empty_database_url
    columns = "user_id INTEGER, nickname TEXT, job TEXT, chatbot_preference TEXT, created_at TIMESTAMP"
    of_feedback = "message_id INTEGER, user_id INTEGER, feedback_type TEXT, description TEXT, created_at TIMESTAMP"
    message_id = old(
        url,
        f"CREATE TABLE user_preferences ({key(url)}, {columns})",
        f"CREATE TABLE feedback ({key(url)}, {of_feedback})",
    )
    raw_sql.insert(url, "user_preferences", ("id", "user_id", "nickname"), [(5, USER.id, "Bo"), (3, USER.id, "Ayu")])
    given = [(7, message_id, USER.id, None), (8, message_id, USER.id, None), (9, message_id, None, "like")]
    raw_sql.insert(url, "feedback", ("id", "message_id", "user_id", "feedback_type"), given)
    raw_sql.insert(url, "user_preferences", ("id", "user_id", "nickname"), [(9, None, "no owner"), (10, GONE, "gone")])
    found = check(url, message_id)
    assert (found["preferences"]["id"], found["preferences"]["nickname"]) == (3, "Ayu")
    assert [(each["id"], each["feedback_type"]) for each in found["feedback"]] == [(8, None)]
    assert raw_sql.run(url, "SELECT id FROM user_preferences ORDER BY id") == [(9,), (10,)]


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("stored", ["x'6869ff00'", "CAST(x'6869ff' AS TEXT)", "'a' || char(0)", "'yesterday'", "1.5"])
@pytest.mark.sampled(2)
def test_values_of_any_type_are_served(empty_database_url: str, stored: str) -> None:
    url = empty_database_url
    old_databases.build(url, 3, rows=20)
    own = f"SELECT id FROM conversations WHERE user_id = {USER.id}"
    message_id = raw_sql.value(url, f"SELECT min(id) FROM messages WHERE conversation_id IN ({own})")
    values = f"nickname = {stored}, job = {stored}, chatbot_preference = {stored}, created_at = {stored}"
    raw_sql.run(
        url,
        f"UPDATE user_preferences SET {values}, updated_at = {stored}",
        "DELETE FROM feedback",
        "INSERT INTO feedback (message_id, user_id, feedback_type, description, created_at)"
        f" VALUES ({message_id}, {USER.id}, {stored}, {stored}, {stored})",
    )
    found = check(url, message_id)
    assert isinstance(found["preferences"]["nickname"], str)
    (feedback,) = found["feedback"]
    assert isinstance(feedback["description"], str)


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("table", ["conversations", "user_preferences", "feedback"])
def test_a_new_user_does_not_get_rows_of_one_who_is_gone(empty_database_url: str, table: str) -> None:
    url = empty_database_url
    old_databases.build(url, 3, rows=20)
    for changed in ("conversations", "user_preferences", "feedback"):
        raw_sql.run(url, f"DELETE FROM {changed} WHERE user_id NOT IN (SELECT id FROM users)")
    row = f"SELECT min(rowid) FROM {table}"
    raw_sql.run(url, f"UPDATE {table} SET user_id = {GONE} WHERE rowid = ({row})")

    async def work(client: httpx.AsyncClient) -> None:
        assert (await accounts.register(client, "ayu")).id > GONE
        body = {"username": "bela", "email": "bela@example.com", "password": PASSWORD}
        assert (await client.post("/auth/register", json=body)).status_code == 201

    asyncio.run(migrations.upgrade(url))
    months_over_http.in_application(url, work)
