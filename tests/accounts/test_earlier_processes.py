"""Processes of the earlier backend on the same PostgreSQL database, by the statements that they send."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import bcrypt
import httpx
import pytest
from sqlalchemy import make_url

from app.db import migrations
from app.db.database import Database
from app.security import passwords
from services import earlier_backend
from tests.support import months_over_http, old_databases, problems, raw_sql, shared_databases
from tests.support.accounts import PASSWORD, Caller, register
from tests.support.commands import migrate
from tests.support.old_databases import USERS, username

RECOMPUTE = """
    UPDATE user_monthly_token_usage AS month SET input_tokens = sums.i, output_tokens = sums.o, total_tokens = sums.t,
        total_cost = sums.c, message_count = sums.n, last_updated = now()
    FROM (
        SELECT coalesce(sum(m.input_tokens), 0) AS i, coalesce(sum(m.output_tokens), 0) AS o,
            coalesce(sum(m.total_tokens), 0) AS t, coalesce(sum(m.model_cost), 0) AS c, count(m.id) AS n
        FROM messages AS m JOIN conversations AS c ON c.id = m.conversation_id
        WHERE m.role = 'assistant' AND m.input_tokens IS NOT NULL AND c.user_id = {user}
            AND date_trunc('month', m.created_at) = date_trunc('month', now())
    ) AS sums
    WHERE month.user_id = {user} AND month.year = extract(year FROM now()) AND month.month = extract(month FROM now())
"""
ANSWER = """
    INSERT INTO messages (conversation_id, role, content, branch_id, is_active_branch,
        input_tokens, output_tokens, total_tokens, model_cost)
    SELECT id, 'assistant', 'said there', 'b', true, 20, 10, {total}, 0.1 FROM conversations
    WHERE user_id = {user} AND deleted_at IS NULL ORDER BY created_at DESC LIMIT 1
"""
MONTH = "SELECT input_tokens, output_tokens, total_tokens, message_count FROM user_monthly_token_usage"

pytestmark = [pytest.mark.parametrize("kind", ["postgresql"]), pytest.mark.usefixtures("real_hashes")]


@pytest.fixture(scope="module")
def template(postgresql: Callable[[str], str]) -> Iterator[str]:
    """The name of an old database of the newest generation, adopted; its copies are used."""
    with shared_databases.copied(postgresql) as url:
        old_databases.build(url, 3, rows=20)
        assert migrate(url).code == 0
        yield str(make_url(url).database)


@pytest.fixture
def adopted(kind: str, postgresql: Callable[[str], str], template: str) -> Iterator[str]:
    """An old database, adopted."""
    assert kind == "postgresql"
    with shared_databases.copied(postgresql, template) as url:
        yield url


async def chat(client: httpx.AsyncClient, caller: Caller) -> dict[str, Any]:
    answer = await client.post("/chat", json={"message": "hello", "stream": False}, headers=caller.headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def log_in(client: httpx.AsyncClient, name: str, scope: str = "") -> int:
    form = {"username": name, "password": PASSWORD, "scope": scope}
    return (await client.post("/auth/token", data=form)).status_code


def scheme(url: str, name: str) -> str:
    return str(raw_sql.value(url, f"SELECT left(hashed_password, 7) FROM users WHERE username = '{name}'"))


@pytest.mark.parametrize("total", ["30", "NULL", "29"])
@pytest.mark.sampled(1)
def test_both_count_one_user_and_the_script_repairs(adopted: str, total: str) -> None:
    ayu = months_over_http.in_application(adopted, lambda client: register(client, "ayu"))

    async def work(client: httpx.AsyncClient) -> None:
        await chat(client, ayu)
        assert (await client.get("/auth/me", headers=ayu.headers)).status_code == 200

    months_over_http.in_application(adopted, work)
    whose = f" WHERE user_id = {ayu.id}"
    (before,) = raw_sql.run(adopted, MONTH + whose)
    raw_sql.run(adopted, RECOMPUTE.format(user=ayu.id))
    assert raw_sql.run(adopted, MONTH + whose) == [before]
    raw_sql.run(adopted, ANSWER.format(user=ayu.id, total=total), RECOMPUTE.format(user=ayu.id))
    months_over_http.in_application(adopted, work)
    assert migrate(adopted).code == 0
    assert migrate(adopted, "--verify").code == 0
    (after,) = raw_sql.run(adopted, MONTH + whose)
    assert after == (2 * before[0] + 20, 2 * before[1] + 10, 2 * before[2] + 30, 3)


def test_the_old_columns_are_written_until_the_end(adopted: str) -> None:
    figures = "SELECT total_tokens, model_cost::text FROM messages WHERE idempotency_key = 'record:{}'"
    conversation = raw_sql.run(adopted, f"SELECT id FROM conversations WHERE user_id = {USERS[0]} LIMIT 1")[0][0]

    async def record(client: httpx.AsyncClient, name: str) -> None:
        item = {"id": name, "user_id": USERS[0], "model": "m", "input_tokens": 7, "output_tokens": 3, "cost": "0.25"}
        body = {"records": [item | {"conversation_id": conversation}]}
        headers = Caller(USERS[0], username(USERS[0])).headers
        assert (await client.post("/usage/records", json=body, headers=headers)).status_code == 200

    months_over_http.in_application(adopted, lambda client: record(client, "one"))
    assert raw_sql.run(adopted, figures.format("one")) == [(10, "0.25")]
    assert migrate(adopted, "--finish").code == 0
    months_over_http.in_application(adopted, lambda client: record(client, "two"))
    assert raw_sql.run(adopted, figures.format("two")) == [(None, None)]
    assert migrate(adopted, "--verify").code == 0


@pytest.mark.long
def test_passwords_stay_bcrypt_until_the_end(adopted: str) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        await register(client, "ayu")
        assert await log_in(client, "ayu") == 200

    months_over_http.in_application(adopted, work)
    stored = raw_sql.value(adopted, "SELECT hashed_password FROM users WHERE username = 'ayu'")
    assert stored.startswith("$2b$12$")
    assert bcrypt.checkpw(PASSWORD.encode(), stored.encode())
    assert migrate(adopted, "--finish").code == 0
    assert migrate(adopted, "--finish").code == 0
    months_over_http.in_application(adopted, lambda client: log_in(client, "ayu"))
    assert scheme(adopted, "ayu") == "$argon2"


def test_an_argon2_hash_becomes_bcrypt_at_login(adopted: str) -> None:
    long, word = "long " * 20, "a good password"
    found = {}

    async def work(client: httpx.AsyncClient) -> None:
        for name, password in (("ayu", word), ("budi", long)):
            body = {"username": name, "password": password}
            found[name] = (await client.post("/auth/login", json=body)).status_code

    for name, password in (("ayu", word), ("budi", long)):
        stored = asyncio.run(passwords.hash_password(password))
        columns = "username, email, hashed_password, is_active"
        raw_sql.run(adopted, f"INSERT INTO users ({columns}) VALUES ('{name}', '{name}', '{stored}', true)")
    months_over_http.in_application(adopted, work)
    assert found == {"ayu": 200, "budi": 200}
    assert (scheme(adopted, "ayu"), scheme(adopted, "budi")) == ("$2b$12$", "$argon2")


def test_a_password_that_bcrypt_would_cut_is_refused(adopted: str) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        body = {"username": "ayu", "email": "ayu@example.com", "password": "€" * 25}
        problem = problems.check(await client.post("/auth/register", json=body), 422)
        assert "72 bytes" in json.dumps(problem["errors"]["password"])

    months_over_http.in_application(adopted, work)


def test_erased_messages_keep_a_text_that_can_be_read(adopted: str) -> None:
    user = Caller(USERS[0], username(USERS[0]))
    raw_sql.run(adopted, f"UPDATE conversations SET updated_at = now() WHERE user_id = {user.id}")

    async def work(client: httpx.AsyncClient) -> list[str]:
        page = (await client.get("/conversations", headers=user.headers)).json()
        ids = [page["conversations"][0]["id"], (await chat(client, user))["conversation_id"]]
        for id_ in ids:
            assert (await client.delete(f"/conversations/{id_}", headers=user.headers)).status_code == 204
        return ids

    for id_ in months_over_http.in_application(adopted, work):
        where = f"WHERE conversation_id = '{id_}'"
        assert {row[0] for row in raw_sql.run(adopted, f"SELECT content FROM messages {where}")} == {""}
        assert raw_sql.value(adopted, f"SELECT count(*) FROM conversation_contexts {where}") == 0


def test_the_earlier_backend_may_delete_a_user(adopted: str) -> None:
    async def work(client: httpx.AsyncClient) -> Caller:
        ayu = await register(client, "ayu")
        assert await log_in(client, "ayu", "offline_access") == 200
        return ayu

    ayu = months_over_http.in_application(adopted, work)
    raw_sql.run(adopted, f"DELETE FROM users WHERE id = {ayu.id}")
    assert raw_sql.value(adopted, f"SELECT count(*) FROM refresh_tokens WHERE user_id = {ayu.id}") == 0


def test_the_earlier_backend_may_delete_what_has_feedback(adopted: str) -> None:
    ayu = months_over_http.in_application(adopted, lambda client: register(client, "ayu"))

    async def work(client: httpx.AsyncClient) -> str:
        answer = await chat(client, ayu)
        body = {"message_id": answer["message"]["id"], "feedback_type": "like"}
        assert (await client.post("/feedback", json=body, headers=ayu.headers)).status_code == 200
        return str(answer["conversation_id"])

    talk = months_over_http.in_application(adopted, work)
    raw_sql.run(adopted, f"DELETE FROM messages WHERE conversation_id = '{talk}'")
    raw_sql.run(adopted, f"DELETE FROM conversations WHERE id = '{talk}'")
    assert raw_sql.value(adopted, f"SELECT count(*) FROM feedback WHERE user_id = {ayu.id}") == 0


@pytest.mark.parametrize("generation", old_databases.GENERATIONS)
@pytest.mark.long
def test_every_old_generation_awaits_the_end(empty_database_url: str, generation: int) -> None:
    old_databases.build(empty_database_url, generation, rows=5)
    asyncio.run(migrations.upgrade(empty_database_url))
    assert asyncio.run(awaits(empty_database_url))
    assert migrate(empty_database_url, "--finish").code == 0
    assert not asyncio.run(awaits(empty_database_url))
    assert raw_sql.value(empty_database_url, "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal") == 0


def test_a_new_database_awaits_nothing(database_url: str) -> None:
    assert not asyncio.run(awaits(database_url))
    assert migrate(database_url, "--finish").code == 0
    for flag in ("--verify", "--dry-run"):
        assert migrate(database_url, "--finish", flag).code == 2


async def awaits(url: str) -> bool:
    opened = Database.open(url)
    try:
        return await opened.read(earlier_backend.may_run)
    finally:
        await opened.close()
