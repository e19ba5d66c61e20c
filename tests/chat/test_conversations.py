"""Conversations over HTTP: listed, read, and deleted for good; and users of whom nothing is left."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import inspect, text

from app.db.database import Database, Session
from services.accounts import users as accounts_service
from services.chat import turns
from services.chat.tokenizer import TokenCounts
from services.chat.turns import Outcome, Question, Turn
from services.usage.pricing import PriceList
from tests.support import accounts, invariants, problems, raw_sql, records
from tests.support.accounts import Caller
from tests.support.ledger_machine import Died, dying

SECRET = "the moon is a harsh mistress"
JUNE = "2024-06-15T12:00:00Z"


async def say(client: httpx.AsyncClient, caller: Caller, message: str, conversation_id: str | None = None) -> str:
    """Chats with the built-in model; answers with the conversation's id."""
    body = {"message": message, "conversation_id": conversation_id, "stream": False}
    answer = await client.post("/chat", headers=caller.headers, json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["conversation_id"])


async def get(client: httpx.AsyncClient, caller: Caller, path: str, **query: Any) -> dict[str, Any]:
    answer = await client.get(path, headers=caller.headers, params=query)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


async def delete(client: httpx.AsyncClient, caller: Caller, conversation_id: str) -> httpx.Response:
    return await client.delete(f"/conversations/{conversation_id}", headers=caller.headers)


async def delete_user(database: Database, user: Caller) -> None:
    await database.transaction(lambda session: accounts_service.delete(session, user.id))


async def everything(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables that hold what is somebody's."""
    async with database.reads() as session:
        connection = await session.connection()
        tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        return {
            table: sorted((tuple(row) for row in await session.execute(text(f"SELECT * FROM {table}"))), key=repr)
            for table in tables
            if table != "foundation_settings"
        }


async def test_all_pages_together_are_all_conversations_the_latest_first(
    client: httpx.AsyncClient, ayu: Caller, bela: Caller
) -> None:
    ids = [await say(client, ayu, f"conversation {i}") for i in range(7)]
    await say(client, bela, "of someone else")
    await say(client, ayu, "and on", ids[2])
    newest_first = [ids[2], *(id_ for id_ in reversed(ids) if id_ != ids[2])]
    for limit in (1, 3, 7, 100):
        seen: list[str] = []
        for page in range(1, 9):
            content = await get(client, ayu, "/conversations", page=page, limit=limit)
            assert (content["page"], content["limit"], content["total"]) == (page, limit, 7)
            assert content["has_more"] == (page * limit < 7)
            seen += [item["id"] for item in content["conversations"]]
        assert seen == newest_first
    whole = await get(client, ayu, "/conversations")
    assert (whole["page"], whole["limit"], len(whole["conversations"])) == (1, 20, 7)


@pytest.mark.any_database
@pytest.mark.parametrize(
    "query", [{"page": 0}, {"page": -1}, {"page": 2**63}, {"limit": 0}, {"limit": 101}, {"limit": "x"}]
)
async def test_pages_that_cannot_be_are_refused(client: httpx.AsyncClient, ayu: Caller, query: dict[str, Any]) -> None:
    answer = await client.get("/conversations", headers=ayu.headers, params=query)
    assert list(problems.check(answer, 422)["errors"]) == list(query)


async def test_a_conversation_is_read_with_its_messages_oldest_first(client: httpx.AsyncClient, ayu: Caller) -> None:
    conversation_id = await say(client, ayu, "  what \n is  " + "x" * 100)
    await say(client, ayu, "more", conversation_id)
    content = await get(client, ayu, f"/conversations/{conversation_id}")
    keys = {"id", "title", "model_type", "created_at", "updated_at", "messages", "has_more", "next_before"}
    keys |= {"category_name", "parent_conversation_id", "edited_message_id", "is_branch"}
    assert set(content) == keys
    assert content["title"] == ("what is " + "x" * 100)[:80]
    assert content["created_at"] < content["updated_at"]
    said = [(message["role"], message["content"], message["status"]) for message in content["messages"]]
    assert said == [
        ("user", "  what \n is  " + "x" * 100, "complete"),
        ("assistant", "You said:   what \n is  " + "x" * 100, "complete"),
        ("user", "more", "complete"),
        ("assistant", "You said: more", "complete"),
    ]
    question, answer = content["messages"][2:]
    assert question["input_tokens"] is question["total_tokens"] is question["cost"] is None
    assert answer["total_tokens"] == answer["input_tokens"] + answer["output_tokens"]


async def test_someone_elses_and_unknown_conversations_are_not_found(
    client: httpx.AsyncClient, database: Database, ayu: Caller, bela: Caller
) -> None:
    theirs = await say(client, bela, SECRET)
    before = await everything(database)
    for conversation_id in (theirs, "unknown", "%27%20OR%201=1--", "💸", "x" * 255):
        problems.check(await client.get(f"/conversations/{conversation_id}", headers=ayu.headers), 404)
        problems.check(await delete(client, ayu, conversation_id), 404)
    for conversation_id in ("x" * 256, "%00"):
        problems.check(await client.get(f"/conversations/{conversation_id}", headers=ayu.headers), 422)
        problems.check(await delete(client, ayu, conversation_id), 422)
    problems.check(await client.get("/conversations"), 401)
    problems.check(await client.get(f"/conversations/{theirs}"), 401)
    problems.check(await client.delete(f"/conversations/{theirs}"), 401)
    assert await everything(database) == before


async def test_deleting_erases_what_was_said_and_leaves_what_was_used(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    kept = await say(client, ayu, "kept")
    deleted = await say(client, ayu, SECRET)
    await say(client, ayu, f"{SECRET}, said again", deleted)
    usage = await invariants.check(database)
    me = await get(client, ayu, "/auth/me")
    answer = await delete(client, ayu, deleted)
    assert (answer.status_code, answer.content) == (204, b"")
    assert await invariants.check(database) == usage
    assert await get(client, ayu, "/auth/me") == me
    assert SECRET not in repr(await everything(database))
    assert [item["id"] for item in (await get(client, ayu, "/conversations"))["conversations"]] == [kept]
    problems.check(await client.get(f"/conversations/{deleted}", headers=ayu.headers), 404)
    problems.check(await delete(client, ayu, deleted), 404)
    body = {"message": "and now?", "conversation_id": deleted}
    for stream in (True, False):
        problems.check(await client.post("/chat", headers=ayu.headers, json=body | {"stream": stream}), 404)
    assert await invariants.check(database) == usage


async def test_of_two_who_delete_at_once_one_finds_nothing(client: httpx.AsyncClient, ayu: Caller) -> None:
    conversation_id = await say(client, ayu, SECRET)
    answers = await asyncio.gather(*(delete(client, ayu, conversation_id) for _ in range(2)))
    assert sorted(answer.status_code for answer in answers) == [204, 404]


async def test_usage_of_a_deleted_conversation_counts_without_content(
    client: httpx.AsyncClient, database: Database, ayu: Caller, service: Caller
) -> None:
    conversation_id = await say(client, ayu, "x")
    await delete(client, ayu, conversation_id)
    late = records.record(ayu, conversation_id=conversation_id, content=SECRET, created_at=JUNE)
    await records.store(client, service, [late])
    assert (await invariants.check(database))[ayu.id, "2024-06"].message_count == 1
    assert SECRET not in repr(await everything(database))


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("what", ["a conversation", "a user"])
async def test_what_was_deleted_is_not_in_the_bytes_of_the_file(
    client: httpx.AsyncClient, database: Database, database_url: str, ayu: Caller, what: str
) -> None:

    def bytes_of_the_file() -> bytes:
        assert raw_sql.run(database_url, "PRAGMA wal_checkpoint(TRUNCATE)") == [(0, 0, 0)]
        return Path(raw_sql.path_of(database_url)).read_bytes()

    conversation_id = await say(client, ayu, SECRET)
    for length in (1, 50, 500, 5_000):
        await say(client, ayu, SECRET + " and more" * length, conversation_id)
    assert (bytes_of_the_file()).count(SECRET.encode()) >= 10
    if what == "a conversation":
        await delete(client, ayu, conversation_id)
    else:
        await delete_user(database, ayu)
        assert b"ayu@example.com" not in bytes_of_the_file()
    assert SECRET.encode() not in bytes_of_the_file()
    await invariants.check(database)


async def test_deleting_a_user_removes_all_of_theirs_or_nothing(
    client: httpx.AsyncClient, database: Database, ayu: Caller, bela: Caller, service: Caller
) -> None:
    await say(client, bela, "theirs")
    others = await everything(database)
    others["users"] = [row for row in others["users"] if ayu.id != row[0]]
    await delete(client, ayu, await say(client, ayu, "deleted"))
    await say(client, ayu, "kept")
    await records.store(client, service, [records.record(ayu, created_at=JUNE), records.record(ayu, role="user")])
    whole = await everything(database)
    killed = 0
    while True:
        try:
            with dying(database, killed):
                await delete_user(database, ayu)
        except Died:
            killed += 1
            assert await everything(database) == whole
        else:
            break
    assert killed > 4
    assert await everything(database) == others
    await invariants.check(database)


async def test_a_user_is_deleted_while_they_and_their_backend_go_on_writing(
    client: httpx.AsyncClient, database: Database, ayu: Caller, bela: Caller, service: Caller
) -> None:
    written = itertools.count()
    enough = asyncio.Event()

    async def until_refused(write: Callable[[], Awaitable[httpx.Response]]) -> int:
        while (answer := await write()).status_code == 200:
            if next(written) == 12:
                enough.set()
            await asyncio.sleep(0.05)  # else one of them holds the user at any time, and the deletion waits for ever
        return answer.status_code

    async def remove() -> None:
        await enough.wait()
        await delete_user(database, ayu)

    def chats() -> Awaitable[httpx.Response]:
        return client.post("/chat", headers=ayu.headers, json={"message": "x", "stream": False})

    def reports() -> Awaitable[httpx.Response]:
        return records.post(client, service, [records.record(bela), records.record(ayu)])

    writers = [chats] * 4 + [reports] * 2
    *endings, _ = await asyncio.gather(*map(until_refused, writers), remove())
    assert set(endings[:4]) <= {401, 404}, "gone before the question, or before the answer"
    assert endings[4:] == [422, 422]
    assert {owner for owner, _ in await invariants.check(database)} == {bela.id}
    assert {row[2] for row in (await everything(database))["messages"]} == {bela.id}


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_user_deleted_between_two_statements_is_an_unknown_one(
    client: httpx.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch, ayu: Caller
) -> None:
    begin = turns.begin

    async def too_late(*arguments: Any, **more: Any) -> Any:
        monkeypatch.setattr(turns, "begin", begin)
        await delete_user(database, ayu)
        return await begin(*arguments, **more)

    monkeypatch.setattr(turns, "begin", too_late)
    body = {"message": "x", "stream": False}
    problems.check(await client.post("/chat", headers=ayu.headers, json=body), 401)
    assert await invariants.check(database) == {}


async def test_an_answer_to_a_deleted_user_settles_nobody_elses_question(
    database: Database, ayu: Caller, bela: Caller
) -> None:
    """Though on SQLite the next question may get the number that theirs had."""

    async def ask(caller: Caller) -> Turn:
        question = Question(caller.id, "?", "a model")
        begun = await database.transaction(lambda session: turns.begin(session, question, f"turn of {caller.id}", UTC))
        assert isinstance(begun, Turn)
        return begun

    gone = await ask(ayu)
    await delete_user(database, ayu)
    pending = await ask(bela)
    outcome = Outcome("complete", SECRET, "a model", TokenCounts(7, 7))

    async def settle(session: Session) -> object:
        return await turns.settle(session, gone.pending, outcome, None, PriceList(), UTC)

    assert await database.transaction(settle) is None
    assert await invariants.check(database) == {}
    async with database.reads() as session:
        left = await session.execute(text("SELECT id, status, content FROM messages WHERE role = 'assistant'"))
        assert [tuple(row) for row in left] == [(pending.message_id, "pending", None)]


async def test_a_token_of_a_deleted_user_is_nobody_elses(client: httpx.AsyncClient, database: Database) -> None:
    """Though on SQLite the next user might get the number that they had."""
    gone = await accounts.register(client, "ayu")
    token = gone.headers
    await delete_user(database, gone)
    problems.check(await client.get("/auth/me", headers=token), 401)
    await accounts.register(client, "bela")
    for path in ("/auth/me", "/conversations"):
        problems.check(await client.get(path, headers=token), 401)
