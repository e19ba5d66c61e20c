"""Feedback on messages: of their own conversations, one for each message, erased with what was said."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.database import Database
from app.errors import NotFound
from models import Feedback
from services.chat import conversations, feedback
from tests.support import backfilling, problems
from tests.support.accounts import Caller


async def answer_id(client: httpx.AsyncClient, caller: Caller) -> tuple[str, int]:
    answer = await client.post("/chat", json={"message": "Hi", "stream": False}, headers=caller.headers)
    return answer.json()["conversation_id"], answer.json()["message"]["id"]


async def give(client: httpx.AsyncClient, caller: Caller, about: int, **body: Any) -> httpx.Response:
    wanted = {"message_id": about, "feedback_type": "like"} | body
    return await client.post("/feedback/", json=wanted, headers=caller.headers)


async def of_message(client: httpx.AsyncClient, caller: Caller, message_id: int) -> Any:
    answer = await client.get(f"/feedback/message/{message_id}", headers=caller.headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_feedback_replaces_earlier_feedback(client: httpx.AsyncClient, ayu: Caller) -> None:
    _, message_id = await answer_id(client, ayu)
    assert await of_message(client, ayu, message_id) == []
    first = (await give(client, ayu, message_id, description="Clear.")).json()
    assert first["description"] == "Clear."
    second = (await give(client, ayu, message_id, feedback_type="dislike")).json()
    assert (second["id"], second["feedback_type"], second["description"]) == (first["id"], "dislike", None)
    assert await of_message(client, ayu, message_id) == [second]
    deleted = await client.delete(f"/feedback/{second['id']}", headers=ayu.headers)
    assert (deleted.status_code, set(deleted.json())) == (200, {"message"})
    assert await of_message(client, ayu, message_id) == []
    problems.check(await client.delete(f"/feedback/{second['id']}", headers=ayu.headers), 404)


async def test_others_see_and_change_nothing(client: httpx.AsyncClient, ayu: Caller, bela: Caller) -> None:
    _, message_id = await answer_id(client, ayu)
    mine = (await give(client, ayu, message_id)).json()
    problems.check(await give(client, bela, message_id), 404)
    problems.check(await client.get(f"/feedback/message/{message_id}", headers=bela.headers), 404)
    problems.check(await client.delete(f"/feedback/{mine['id']}", headers=bela.headers), 404)
    assert await of_message(client, ayu, message_id) == [mine]


@pytest.mark.any_database
@pytest.mark.parametrize(
    "body",
    [
        {"feedback_type": "love"},
        {"message_id": 0},
        {"message_id": 2**63},
        {"message_id": "1"},
        {"description": "x" * 10_001},
        {"description": "\x00"},
    ],
)
async def test_what_is_no_feedback_is_refused(client: httpx.AsyncClient, ayu: Caller, body: dict[str, Any]) -> None:
    _, message_id = await answer_id(client, ayu)
    problems.check(await give(client, ayu, message_id, **body), 422)
    assert await of_message(client, ayu, message_id) == []


async def test_deleting_a_conversation_erases_its_feedback(
    client: httpx.AsyncClient, database: Database, ayu: Caller
) -> None:
    conversation_id, message_id = await answer_id(client, ayu)
    _, kept = await answer_id(client, ayu)
    for each in (message_id, kept):
        await give(client, ayu, each, description="it said so")
    await client.delete(f"/conversations/{conversation_id}", headers=ayu.headers)
    async with database.reads() as session:
        assert list(await session.scalars(select(Feedback.message_id))) == [kept]
    problems.check(await give(client, ayu, message_id), 404)
    problems.check(await client.get(f"/feedback/message/{message_id}", headers=ayu.headers), 404)


async def test_several_old_rows_count_as_the_newest(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    _, message_id = await answer_id(client, ayu)
    for id_, kind in ((1, "like"), (2, "dislike")):
        values = {"id": id_, "message_id": message_id, "user_id": ayu.id, "feedback_type": kind}
        async with database.sessions.begin() as session:
            await session.execute(insert(Feedback).values(values))
    (found,) = await of_message(client, ayu, message_id)
    assert (found["id"], found["feedback_type"]) == (2, "dislike")
    assert (await give(client, ayu, message_id)).json()["id"] == 2
    assert await of_message(client, ayu, message_id) != []
    assert (await client.delete("/feedback/2", headers=ayu.headers)).status_code == 200
    assert await of_message(client, ayu, message_id) == []


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("is_first", [True, False])
async def test_no_feedback_stays_on_a_conversation_being_deleted(
    client: httpx.AsyncClient, database: Database, ayu: Caller, is_first: bool
) -> None:
    conversation_id, message_id = await answer_id(client, ayu)

    async def give_it(session: AsyncSession) -> None:
        await feedback.store(session, ayu.id, message_id, "like", "it said so")

    async def delete_it(session: AsyncSession) -> None:
        await conversations.delete(session, ayu.id, conversation_id)

    first, second = (give_it, delete_it) if is_first else (delete_it, give_it)
    async with database.sessions.begin() as session:
        await first(session)
        other = asyncio.create_task(database.transaction(second))

        async def has_come() -> bool:
            return other.done() or bool(await backfilling.waiting(database))

        await backfilling.until(has_come)
    found = (await asyncio.gather(other, return_exceptions=True))[0]
    assert isinstance(found, NotFound) != is_first
    async with database.reads() as session:
        assert list(await session.scalars(select(Feedback.id))) == []
