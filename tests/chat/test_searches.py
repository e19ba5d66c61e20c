"""Searches find exactly the conversations with the keyword in the title or in a message, with an index and without."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import insert, update

from app import clock
from app.db.database import Database
from models import Conversation, Message
from services.chat import conversation_lists, searches, trigrams
from tests.support import accounts
from tests.support.accounts import Caller

CHARACTERS = st.sampled_from([*"aAbBsSkK%_\\/\"*-'^:éÉßẞİ日本 \n", "e\u0301", "\u212a", "😀", "AND", "OR", "NEAR"])
texts = st.lists(CHARACTERS, max_size=8).map("".join)
Talk = tuple[str, list[str]]


@st.composite
def searched(draw: st.DrawFn) -> tuple[list[Talk], list[Talk], str]:
    """Draw conversations, later ones, and a keyword: mostly a part of what was said, in either case."""
    talks = st.lists(st.tuples(texts, st.lists(texts, max_size=4)), max_size=4)
    stored, later = draw(talks), draw(talks)
    said = draw(st.sampled_from([text for title, texts in stored + later for text in (title, *texts)] or [""]))
    start = draw(st.integers(0, max(0, len(said) - 1)))
    part = said[start : start + draw(st.integers(1, 6))]
    return stored, later, draw(st.sampled_from([part, part.swapcase()])) or draw(CHARACTERS)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite indexes every message, and searches ask the index for the smallest of users."""
    monkeypatch.setattr(trigrams, "_TAIL", 1)
    monkeypatch.setattr(trigrams, "_BREATH_SECONDS", 0)
    monkeypatch.setattr(searches, "_SAMPLE", 0)


async def index(database: Database) -> None:
    """Index every message, if this is SQLite."""
    await trigrams.keep(database, asyncio.Event())


async def store(database: Database, user_id: int, title: str, contents: Sequence[str | None]) -> str:
    """Store a conversation with messages."""
    id_ = str(uuid.uuid4())
    values = {"id": id_, "user_id": user_id, "title": title, "model_type": "Standard", "updated_at": clock.now()}
    row = {"conversation_id": id_, "user_id": user_id, "role": "user", "created_at": clock.now()}
    async with database.sessions.begin() as session:
        await session.execute(insert(Conversation).values(values))
        for content in contents:
            await session.execute(insert(Message).values(content=content, **row))
    return id_


async def related(database: Database, user_id: int, keyword: str) -> Mapping[str, list[str]]:
    """Search: the contents that are shown, by conversation."""
    page = await database.read(lambda session: conversation_lists.listed(session, user_id, 1, 100, keyword))
    assert page.total == len(page.conversations)
    return {c.id: [message.content for message in page.related[c.id]] for c in page.conversations}


def expected(stored: Mapping[str, tuple[str, Sequence[str]]], keyword: str, kind: str) -> Mapping[str, list[str]]:
    """What a search must find, in Python."""
    fold = {"sqlite": ascii_folded, "postgresql": folded}[kind]
    forms = {keyword} if keyword.isascii() else {keyword, *usual_forms(keyword)}

    def matches(said: str) -> bool:
        return any(fold(form) in fold(said) for form in forms)

    said = {id_: [content for content in contents if matches(content)] for id_, (_title, contents) in stored.items()}
    return {id_: said[id_][::-1] for id_, (title, _contents) in stored.items() if said[id_] or matches(title)}


def usual_forms(keyword: str) -> set[str]:
    return {keyword.lower(), keyword.upper(), keyword.capitalize(), keyword.title()}


def ascii_folded(said: str) -> str:
    return said.encode().lower().decode()  # `bytes.lower` knows ASCII alone


def folded(said: str) -> str:
    """Fold each character to one, as PostgreSQL's `lower` does."""
    return "".join("i" if character == "İ" else character.lower() for character in said)


@given(drawn=searched())
@example(drawn=([("x", ["sun"])], [("y", ["the moon"])], "moon"))
@example(drawn=([("x", ['say "Moon" or moon'])], [], '"mOOn"'))
@example(drawn=([("x", ["sun NOT moon*"])], [], "SUN not Moon*"))
@example(drawn=([("x", ["Straße", "STRASSE", "Cafe\u0301 \u212aelvin"])], [], "straße"))
@example(drawn=([("x", ["Straße", "Cafe\u0301 \u212aelvin"])], [], "kelvin"))
def test_a_search_finds_what_python_finds(
    database_url: str, kind: str, eager: None, drawn: tuple[list[Talk], list[Talk], str]
) -> None:
    stored, later, keyword = drawn

    async def check() -> None:
        database = Database.open(database_url)
        try:
            user = (await accounts.add(database, uuid.uuid4().hex)).id
            talks = {await store(database, user, *talk): talk for talk in stored}
            assert await related(database, user, keyword) == expected(talks, keyword, kind)
            await index(database)
            talks |= {await store(database, user, *talk): talk for talk in later}
            assert await related(database, user, keyword) == expected(talks, keyword, kind)
        finally:
            await database.close()

    asyncio.run(check())


@pytest.mark.parametrize("keyword", ["moon", "n"], ids=["rare", "common"])
async def test_a_search_reads_beyond_its_sample(
    database: Database, ayu: Caller, monkeypatch: pytest.MonkeyPatch, keyword: str
) -> None:
    monkeypatch.setattr(searches, "_SAMPLE", 20)
    ids = [await store(database, ayu.id, "x", [f"sun {number}"] * 3) for number in range(10)]
    ids.append(await store(database, ayu.id, "x", [f"moon {number}" for number in range(7)]))
    found = await related(database, ayu.id, keyword)
    assert set(found) == set(ids if keyword == "n" else ids[-1:])
    assert found[ids[-1]] == [f"moon {number}" for number in (6, 5, 4, 3, 2)]


async def test_messages_without_an_owner_are_found(database: Database, ayu: Caller) -> None:
    id_ = await store(database, ayu.id, "x", ["the moon"])
    async with database.sessions.begin() as session:
        await session.execute(update(Message).values(user_id=None))
    assert await related(database, ayu.id, "moon") == {id_: ["the moon"]}


async def test_erased_content_is_not_found(
    client: httpx.AsyncClient, database: Database, ayu: Caller, eager: None
) -> None:
    id_ = await store(database, ayu.id, "moon", ["a moon"])
    await index(database)
    assert await related(database, ayu.id, "moon")
    assert (await client.delete(f"/conversations/{id_}", headers=ayu.headers)).status_code == 204
    assert await related(database, ayu.id, "moon") == {}
