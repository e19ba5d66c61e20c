"""`PUT /messages/{id}`: an edited question in a branch, whose copies are not counted; and lists of branches."""

import asyncio
from collections.abc import Sequence
from datetime import UTC
from typing import Any
from unittest import mock

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import insert, select, update

from app import clock
from app.db.database import Database
from app.errors import UpstreamError
from models import Conversation, Message
from services.backfill.old_rows import count, find
from tests.support import invariants, problems
from tests.support.accounts import Caller

pytestmark = pytest.mark.any_database

USAGE = ("input_tokens", "output_tokens", "cached_input_tokens", "total_tokens", "model_cost", "cost")


async def say(client: httpx.AsyncClient, caller: Caller, message: str, conversation_id: str | None = None) -> str:
    body = {"message": message, "conversation_id": conversation_id, "stream": False}
    answer = await client.post("/chat", headers=caller.headers, json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["conversation_id"])


async def said(client: httpx.AsyncClient, caller: Caller, conversation_id: str) -> Sequence[dict[str, Any]]:
    answer = await client.get(f"/conversations/{conversation_id}", headers=caller.headers)
    assert answer.status_code == 200, answer.text
    messages: Sequence[dict[str, Any]] = answer.json()["messages"]
    return messages


async def edit(
    client: httpx.AsyncClient, caller: Caller, message_id: int, content: str = "edited", **headers: str
) -> httpx.Response:
    body = {"content": content}
    return await client.put(f"/messages/{message_id}", headers={**caller.headers, **headers}, json=body)


async def branch_of(client: httpx.AsyncClient, caller: Caller, message_id: int) -> str:
    answer = await edit(client, caller, message_id)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["conversation_id"])


async def counted(database: Database) -> int:
    """Count the answers in all months, each month being the sum of its messages."""
    return sum(totals.message_count for totals in (await invariants.check(database, UTC)).values())


async def test_an_edit_copies_what_was_before_without_usage(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    root = await say(client, ayu, "one")
    await say(client, ayu, "two", root)
    await say(client, ayu, "three", root)
    before = await said(client, ayu, root)
    answer = (await edit(client, ayu, before[2]["id"], "two, edited")).json()
    branch = answer["conversation_id"]
    assert answer["new_branch_id"] == branch != root
    copied = await said(client, ayu, branch)
    assert [message["content"] for message in copied[:3]] == ["one", before[1]["content"], "two, edited"]
    assert (copied[2]["id"], [copied[3]]) == (answer["message_id"], answer["regenerated_messages"])
    assert len(copied) == 4
    assert all(message[key] is None for message in copied[:3] for key in USAGE)
    assert copied[3]["input_tokens"] > before[1]["input_tokens"]
    assert copied[1]["created_at"] == before[1]["created_at"]
    assert await counted(database) == 4
    after = await said(client, ayu, root)
    assert [message["has_branches"] for message in after] == [False, False, True, False, False, False]
    assert [message | {"has_branches": False} for message in after] == before


async def test_copies_are_no_old_rows_to_adopt(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    root = await say(client, ayu, "one")
    await say(client, ayu, "two", root)
    await branch_of(client, ayu, (await said(client, ayu, root))[2]["id"])
    async with database.reads() as session:
        assert await count(session, await find(session, None, UTC)) == 0


async def test_a_title_says_once_that_it_was_edited(client: httpx.AsyncClient, ayu: Caller) -> None:
    branch = await branch_of(client, ayu, (await said(client, ayu, await say(client, ayu, "one")))[0]["id"])
    second = await branch_of(client, ayu, (await said(client, ayu, branch))[0]["id"])
    for id_ in (branch, second):
        shown = (await client.get(f"/conversations/{id_}", headers=ayu.headers)).json()
        assert (shown["title"], shown["is_branch"]) == ("one (Edited)", True)
    assert shown["parent_conversation_id"] == branch


async def test_only_own_questions_can_be_edited(
    client: httpx.AsyncClient, database: Database, ayu: Caller, bela: Caller
) -> None:
    root = await say(client, ayu, "one")
    question, answer = await said(client, ayu, root)
    problems.check(await edit(client, ayu, answer["id"]), 400)
    problems.check(await edit(client, ayu, question["id"], " \n"), 400)
    problems.check(await edit(client, ayu, question["id"], "x" * 100_001), 422)
    problems.check(await edit(client, bela, question["id"]), 404)
    problems.check(await edit(client, bela, answer["id"]), 404)
    problems.check(await edit(client, ayu, 2**63 - 1), 404)
    await client.delete(f"/conversations/{root}", headers=ayu.headers)
    problems.check(await edit(client, ayu, question["id"]), 404)
    problems.check(await edit(client, ayu, answer["id"]), 404)
    assert await counted(database) == 1
    assert (await client.get("/conversations", headers=ayu.headers)).json()["total"] == 0


async def test_an_edit_with_a_key_is_answered_once(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    root = await say(client, ayu, "one")
    question = (await said(client, ayu, root))[0]["id"]
    key = {"Idempotency-Key": "once"}
    first = await edit(client, ayu, question, **key)
    again = await edit(client, ayu, question, **key)
    assert (first.status_code, first.json()) == (200, again.json())
    problems.check(await edit(client, ayu, question, "else", **key), 422)
    await client.delete(f"/conversations/{root}", headers=ayu.headers)
    assert (await edit(client, ayu, question, **key)).json() == first.json()
    assert await counted(database) == 2


async def test_a_branch_outlives_its_parent_and_the_reverse(client: httpx.AsyncClient, ayu: Caller) -> None:
    root = await say(client, ayu, "one")
    question = (await said(client, ayu, root))[0]["id"]
    gone, kept = [await branch_of(client, ayu, question) for _ in range(2)]
    await client.delete(f"/conversations/{gone}", headers=ayu.headers)
    assert (await said(client, ayu, root))[0]["has_branches"]
    await client.delete(f"/conversations/{root}", headers=ayu.headers)
    await say(client, ayu, "and on", kept)
    last = await branch_of(client, ayu, (await said(client, ayu, kept))[0]["id"])
    assert len(await said(client, ayu, kept)) == 4
    await client.delete(f"/conversations/{last}", headers=ayu.headers)
    assert not any(message["has_branches"] for message in await said(client, ayu, kept))


async def test_branches_are_listed_around_a_conversation(client: httpx.AsyncClient, ayu: Caller, bela: Caller) -> None:
    root, other = await say(client, ayu, "one"), await say(client, ayu, "other")
    question = (await said(client, ayu, root))[0]["id"]
    child, sibling = await branch_of(client, ayu, question), await branch_of(client, ayu, question)
    edited = (await said(client, ayu, child))[0]["id"]
    grandchild = await branch_of(client, ayu, edited)
    shown = {root: 0, child: question, sibling: question, grandchild: edited}
    families = {
        **{root: [root, child, sibling], child: [root, child, sibling, grandchild]},
        **{grandchild: [child, grandchild], other: [other]},
    }
    for id_, family in families.items():
        found = (await client.get(f"/conversations/{id_}/branches", headers=ayu.headers)).json()
        assert (found["conversation_id"], [branch["branch_id"] for branch in found["branches"]]) == (id_, family)
        for branch in found["branches"]:
            assert (branch["is_active"], branch["message_count"]) == (branch["branch_id"] == id_, 2)
            assert branch["root_message_id"] == shown.get(branch["branch_id"], 0)
        for branch_id in shown:
            path = f"/conversations/{id_}/branches/{branch_id}/activate"
            answer = await client.post(path, headers=ayu.headers)
            if branch_id in family:
                assert (answer.status_code, answer.json().keys()) == (200, {"message"})
            else:
                problems.check(answer, 404)
            problems.check(await client.post(path, headers=bela.headers), 404)
    problems.check(await client.get(f"/conversations/{root}/branches", headers=bela.headers), 404)


async def test_an_edit_keeps_images_and_document_context(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    root = await say(client, ayu, "one")
    await say(client, ayu, "two", root)
    attached = {"image_urls": '["/images/1.png"]', "document_context": '{"chart_data": [1]}'}
    async with database.sessions.begin() as session:
        await session.execute(update(Message).where(Message.role == "user").values(attached))
    branch = await branch_of(client, ayu, (await said(client, ayu, root))[2]["id"])
    copied = await said(client, ayu, branch)
    assert [message["image_urls"] for message in copied] == [["/images/1.png"], None, ["/images/1.png"], None]
    assert [message["chart_data"] for message in copied] == [[1], None, [1], None]


async def test_a_pending_answer_is_not_copied(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    root = await say(client, ayu, "one")
    await say(client, ayu, "two", root)
    before = await said(client, ayu, root)
    async with database.sessions.begin() as session:
        nothing = dict.fromkeys(("input_tokens", "output_tokens", "cached_input_tokens", "cost", "usage_date"))
        pending = {**nothing, "status": "pending", "turn": "x", "content": None}
        await session.execute(update(Message).where(Message.id == before[1]["id"]).values(pending))
    branch = await branch_of(client, ayu, before[2]["id"])
    assert [message["role"] for message in await said(client, ayu, branch)] == ["user", "user", "assistant"]


async def test_a_failed_edit_keeps_the_branch(
    app: FastAPI, client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    root = await say(client, ayu, "one")
    question = (await said(client, ayu, root))[0]["id"]
    with mock.patch.object(type(app.state.foundation.upstream), "ask", side_effect=UpstreamError("refused")):
        problems.check(await edit(client, ayu, question), 502)
    newest = (await client.get("/conversations", headers=ayu.headers)).json()["data"][0]
    assert newest["parent_conversation_id"] == root
    assert [message["status"] for message in await said(client, ayu, newest["id"])] == ["complete", "failed"]
    await say(client, ayu, "edited", newest["id"])
    assert await counted(database) == 2


@pytest.mark.parametrize("edits", [2, 5])
async def test_edits_and_a_deletion_at_once(
    client: httpx.AsyncClient, database: Database, ayu: Caller, edits: int
) -> None:
    root = await say(client, ayu, "secret")
    await say(client, ayu, "two", root)
    question = (await said(client, ayu, root))[2]["id"]
    deletion = client.delete(f"/conversations/{root}", headers=ayu.headers)
    *answers, deleted = await asyncio.gather(*(edit(client, ayu, question) for _ in range(edits)), deletion)
    assert deleted.status_code == 204
    done = [answer.json()["conversation_id"] for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} <= {200, 404}
    for branch in done:
        assert (await said(client, ayu, branch))[0]["content"] == "secret"
    assert await counted(database) == 2 + len(done)
    assert (await client.get("/conversations", headers=ayu.headers)).json()["total"] == len(done)


async def test_copies_keep_their_order_in_a_long_branch(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    root = await say(client, ayu, "one")
    row = {"conversation_id": root, "user_id": ayu.id, "role": "user", "created_at": clock.now()}
    async with database.sessions.begin() as session:
        await session.execute(insert(Message), [{**row, "content": str(number)} for number in range(3_000)])
        last = await session.scalar(select(Message.id).order_by(Message.id.desc()).limit(1))
    assert last is not None
    branch = await branch_of(client, ayu, last)
    contents = [message["content"] for message in await said(client, ayu, branch)]
    assert contents[:-2] == [str(number) for number in range(3_002 - 1_000 - 1, 2_999)]


async def test_an_edit_asks_the_model_of_the_conversation(
    app: FastAPI, client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    app.state.foundation.settings.model_names["Reasoning"] = "the-reasoner"
    root = await say(client, ayu, "one")
    async with database.sessions.begin() as session:
        await session.execute(update(Conversation).values(model_type="Reasoning"))
    with mock.patch.object(type(app.state.foundation.upstream), "model_for", side_effect=str) as asked:
        await edit(client, ayu, (await said(client, ayu, root))[0]["id"])
    assert asked.call_args.args == ("the-reasoner",)
