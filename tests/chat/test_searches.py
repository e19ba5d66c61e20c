"""Searches find exactly the conversations with the keyword in the title or in a message."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence

import httpx
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import insert

from app import clock
from app.db.database import Database
from models import Conversation, Message
from services.chat import conversation_lists
from tests.support import accounts
from tests.support.accounts import Caller

CHARACTERS = st.sampled_from([*"aAbBsSkK%_\\/\"*-'^:éÉßẞ日本 \n", "e\u0301", "\u212a", "😀"])
texts = st.lists(CHARACTERS, max_size=8).map("".join)
Talk = tuple[str, list[str]]


@st.composite
def searched(draw: st.DrawFn) -> tuple[list[Talk], str]:
    """Conversations, and a keyword: mostly a part of what was said, in either case."""
    talks = draw(st.lists(st.tuples(texts, st.lists(texts, max_size=4)), max_size=4))
    said = draw(st.sampled_from([text for title, contents in talks for text in (title, *contents)] or [""]))
    start = draw(st.integers(0, max(0, len(said) - 1)))
    part = said[start : start + draw(st.integers(1, 6))]
    return talks, draw(st.sampled_from([part, part.swapcase()])) or draw(CHARACTERS)


async def store(database: Database, user_id: int, title: str, contents: Sequence[str]) -> str:
    id_ = str(uuid.uuid4())
    values = {"id": id_, "user_id": user_id, "title": title, "model_type": "Standard", "updated_at": clock.now()}
    row = {"conversation_id": id_, "user_id": user_id, "role": "user", "created_at": clock.now()}
    async with database.sessions.begin() as session:
        await session.execute(insert(Conversation).values(values))
        for content in contents:
            await session.execute(insert(Message).values(content=content, **row))
    return id_


async def found(database: Database, user_id: int, keyword: str) -> Mapping[str, list[str]]:
    """The contents that a search shows, by conversation."""
    page = await database.read(lambda session: conversation_lists.listed(session, user_id, 1, 100, keyword))
    assert page.total == len(page.conversations)
    shown = {id_: [message.content or "" for message in messages] for id_, messages in page.related.items()}
    return {conversation.id: shown.get(conversation.id, []) for conversation in page.conversations}


def expected(talks: Mapping[str, Talk], keyword: str, kind: str) -> Mapping[str, list[str]]:
    """The same in Python."""
    fold = folded if kind == "postgresql" and not keyword.isascii() else ascii_folded
    usual = {keyword.lower(), keyword.upper(), keyword.capitalize(), keyword.title()}
    forms = {keyword} if keyword.isascii() else {keyword} | usual

    def matches(said: str) -> bool:
        return any(fold(form) in fold(said) for form in forms)

    said = {id_: [content for content in contents if matches(content)] for id_, (_, contents) in talks.items()}
    return {id_: said[id_][::-1] for id_, (title, _) in talks.items() if said[id_] or matches(title)}


def ascii_folded(said: str) -> str:
    return said.encode().lower().decode()  # `bytes.lower` knows ASCII alone


def folded(said: str) -> str:
    return "".join(character.lower() for character in said)


@given(drawn=searched())
@example(drawn=([("x", ['say "Moon" or moon'])], '"mOOn"'))
@example(drawn=([("x", ["100%", "a_b", "a\\b"]), ("y", ["100", "axb"])], "%"))
@example(drawn=([("x", ["Straße", "STRASSE", "Cafe\u0301 \u212aelvin"])], "straße"))
@example(drawn=([("x", ["Straße", "Cafe\u0301 \u212aelvin"])], "kelvin"))
def test_a_search_finds_what_python_finds(database_url: str, kind: str, drawn: tuple[list[Talk], str]) -> None:
    said, keyword = drawn

    async def check() -> None:
        database = Database.open(database_url)
        try:
            user = (await accounts.add(database, uuid.uuid4().hex)).id
            talks = {await store(database, user, *talk): talk for talk in said}
            assert await found(database, user, keyword) == expected(talks, keyword, kind)
        finally:
            await database.close()

    asyncio.run(check())


async def test_erased_content_is_not_found(client: httpx.AsyncClient, database: Database, ayu: Caller) -> None:
    id_ = await store(database, ayu.id, "moon", ["a moon"])
    assert await found(database, ayu.id, "moon")
    assert (await client.delete(f"/conversations/{id_}", headers=ayu.headers)).status_code == 204
    assert await found(database, ayu.id, "moon") == {}
