"""Deleting a user of an adopted database: nothing of the user's stays in any old table, and nothing else goes."""

import asyncio
from typing import Any

import pytest

from app.db import migrations
from app.db.database import Database
from services.accounts import users
from tests.support import old_databases, raw_sql
from tests.support.old_databases import USERS

pytestmark = pytest.mark.any_database

OWNED = ("documents", "document_collections", "feedback", "user_preferences", "user_model_categories", "conversations")
BY_OTHERS = {
    "document_chunks": "SELECT count(*) FROM document_chunks WHERE document_id NOT IN (SELECT id FROM documents)",
    "conversation_contexts": "SELECT count(*) FROM conversation_contexts"
    " WHERE conversation_id NOT IN (SELECT id FROM conversations)",
}


def delete(url: str, user_id: int) -> None:
    async def work() -> None:
        database = Database.open(url)
        try:
            await database.transaction(lambda session: users.delete(session, user_id))
        finally:
            await database.close()

    asyncio.run(work())


def test_a_deleted_category_may_be_named_by_others(empty_database_url: str) -> None:
    url, gone, other = empty_database_url, USERS[0], USERS[1]
    old_databases.build(url, 3)
    category = f"(SELECT id FROM user_model_categories WHERE user_id = {gone})"
    raw_sql.run(url, f"UPDATE conversations SET category_id = {category} WHERE user_id = {other}")
    asyncio.run(migrations.upgrade(url))
    before = rows(url, "conversations", f"user_id = {other}")
    delete(url, gone)
    assert rows(url, "conversations", f"user_id = {other} AND category_id IS NULL") == before > 0


def rows(url: str, table: str, where: str) -> Any:
    return raw_sql.value(url, f"SELECT count(*) FROM {table} WHERE {where}")


def test_a_deleted_user_leaves_no_row_in_old_tables(empty_database_url: str) -> None:
    url, gone = empty_database_url, USERS[0]
    old_databases.build(url, 3)
    asyncio.run(migrations.upgrade(url))
    orphans = {table: raw_sql.value(url, statement) for table, statement in BY_OTHERS.items()}
    others = {table: rows(url, table, f"user_id <> {gone}") for table in OWNED}
    assert all(rows(url, table, f"user_id = {gone}") and others[table] for table in OWNED)
    delete(url, gone)
    assert {table: rows(url, table, f"user_id = {gone}") for table in OWNED} == dict.fromkeys(OWNED, 0)
    assert {table: rows(url, table, f"user_id <> {gone}") for table in OWNED} == others
    assert {table: raw_sql.value(url, statement) for table, statement in BY_OTHERS.items()} == orphans


@pytest.mark.parametrize(
    "form", ["CREATE TABLE documents (id INTEGER)", "CREATE TABLE document_chunks (owner INTEGER)"]
)
def test_tables_of_other_products_are_left_alone(database_url: str, form: str, kind: str) -> None:
    if kind == "postgresql":
        pytest.skip("the database is shared by tests")
    raw_sql.run(
        database_url, form, "INSERT INTO users (id, username, email, hashed_password) VALUES (1, 'a', 'a', '!')"
    )
    delete(database_url, 1)
    assert raw_sql.value(database_url, "SELECT count(*) FROM users") == 0


def test_a_category_may_name_any_model(empty_database_url: str) -> None:
    old_databases.build(empty_database_url, 3)
    asyncio.run(migrations.upgrade(empty_database_url))
    (row,) = raw_sql.run(empty_database_url, f"SELECT id FROM user_model_categories WHERE user_id = {USERS[0]}")
    raw_sql.run(empty_database_url, f"UPDATE user_model_categories SET model_id = 'new' WHERE id = {row[0]}")
    assert raw_sql.value(empty_database_url, "SELECT count(*) FROM user_model_categories WHERE model_id = 'new'") == 1
