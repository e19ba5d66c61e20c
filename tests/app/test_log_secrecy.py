"""What users write is in no line of the log, whatever fails; what failed is."""

import asyncio

import httpx
import pytest

from tests.support import raw_sql
from tests.support.accounts import Caller
from tests.support.openai_server import Answer, OpenAIServer
from tests.support.secret_marks import (
    BOTH,
    FAULTS,
    MARK,
    ON_POSTGRESQL,
    ON_SQLITE,
    Captured,
    app_settings,
    check,
    log_format,
    logged,
    upstream,
)

__all__ = ["app_settings", "log_format", "logged", "upstream"]


TABLES = {"messages": "content", "users": "email", "conversations": "title", "attempts": "key"}


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
