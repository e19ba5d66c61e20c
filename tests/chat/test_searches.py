"""Searches find exactly the conversations with the keyword in the title or in a message, with an index and without."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, update

from app import clock
from app.db.database import Database
from models import Conversation, Message
from services.chat import conversation_lists, searches, trigrams
from tests.support import accounts, debian_postgresql, partitioned, raw_sql
from tests.support.accounts import Caller

CHARACTERS = st.sampled_from([*"aAbBsSkK%_\\/\"*-'^:éÉßẞİ日本 \n", "e\u0301", "\u212a", "😀", "AND", "OR", "NEAR"])
texts = st.lists(CHARACTERS, max_size=8).map("".join)
talks = st.lists(st.tuples(texts, st.lists(texts, max_size=4)), max_size=4)
changes = st.lists(st.tuples(st.sampled_from(["kept", "edited", "deleted", "again"]), texts | st.none()), max_size=8)
Talk = tuple[str, list[str]]
Change = tuple[str, str | None]
Drawn = tuple[list[Talk], list[Change], list[Talk], str]
Stored = dict[str, tuple[str, dict[int, str | None]]]
"""Title and messages, by conversation."""


@st.composite
def searched(draw: st.DrawFn) -> Drawn:
    """Draw conversations, changes to their messages, later ones, and a keyword: mostly a part of what was said."""
    stored, changed, later = draw(talks), draw(changes), draw(talks)
    said = [text for title, contents in stored + later for text in (title, *contents)]
    text = draw(st.sampled_from([*said, *(content for _, content in changed if content)] or [""]))
    start = draw(st.integers(0, max(0, len(text) - 1)))
    part = text[start : start + draw(st.integers(1, 6))]
    return stored, changed, later, draw(st.sampled_from([part, part.swapcase()])) or draw(CHARACTERS)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite indexes every message, and PostgreSQL looks up every keyword."""
    monkeypatch.setattr(trigrams, "_TAIL", 1)
    monkeypatch.setattr(trigrams, "_BREATH_SECONDS", 0)
    monkeypatch.setattr(searches, "_COMMON", 1_000)


async def index(database: Database) -> None:
    """Index every message, if this is SQLite."""
    await trigrams.keep(database, asyncio.Event())


async def store(database: Database, user_id: int, title: str, contents: Sequence[str | None]) -> Stored:
    """Store a conversation with messages."""
    id_ = str(uuid.uuid4())
    values = {"id": id_, "user_id": user_id, "title": title, "model_type": "Standard", "updated_at": clock.now()}
    row = {"conversation_id": id_, "user_id": user_id, "role": "user", "created_at": clock.now()}
    said = {}
    async with database.sessions.begin() as session:
        await session.execute(insert(Conversation).values(values))
        for content in contents:
            made = await session.execute(insert(Message).values(content=content, **row).returning(Message.id))
            said[made.scalar_one()] = content
    return {id_: (title, said)}


async def change(database: Database, user_id: int, stored: Stored, changed: Sequence[Change]) -> None:
    """Edit and delete messages, and use the ids of deleted ones again."""
    places = [(id_, said, key) for id_, (_title, said) in stored.items() for key in list(said)]
    async with database.sessions.begin() as session:
        for (id_, said, key), (what, content) in zip(places, changed, strict=False):
            if what == "edited":
                await session.execute(update(Message).where(Message.id == key).values(content=content))
                said[key] = content
            if what in ("deleted", "again"):
                await session.execute(delete(Message).where(Message.id == key))
                del said[key]
            if what == "again":
                values = {"id": key, "conversation_id": id_, "user_id": user_id, "role": "user", "content": content}
                await session.execute(insert(Message).values(created_at=clock.now(), **values))
                said[key] = content


async def found(database: Database, user_id: int, keyword: str) -> Mapping[str, list[str]]:
    """The contents that a search shows, by conversation."""
    page = await database.read(lambda session: conversation_lists.listed(session, user_id, 1, 100, keyword))
    assert page.total == len(page.conversations)
    shown = {id_: [message.content or "" for message in messages] for id_, messages in page.related.items()}
    return {conversation.id: shown.get(conversation.id, []) for conversation in page.conversations}


def expected(stored: Stored, keyword: str, kind: str) -> Mapping[str, list[str]]:
    """The same in Python."""
    fold = folded if kind == "postgresql" and not keyword.isascii() else ascii_folded
    usual = {keyword.lower(), keyword.upper(), keyword.capitalize(), keyword.title()}
    forms = {keyword} if keyword.isascii() else {keyword} | usual

    def matches(text: str | None) -> bool:
        return text is not None and any(fold(form) in fold(text) for form in forms)

    def shown(messages: Mapping[int, str | None]) -> list[str]:
        return [messages[key] or "" for key in sorted(messages, reverse=True) if matches(messages[key])]

    said = {id_: shown(messages) for id_, (_, messages) in stored.items()}
    return {id_: said[id_][:5] for id_, (title, _) in stored.items() if said[id_] or matches(title)}


def ascii_folded(said: str) -> str:
    return said.encode().lower().decode()  # `bytes.lower` knows ASCII alone


def folded(said: str) -> str:
    """Fold each character to one, as PostgreSQL's `lower` does."""
    return "".join("i" if character == "İ" else character.lower() for character in said)


async def check(url: str, kind: str, drawn: Drawn) -> None:
    """Search before and after the messages are indexed and changed, and others have no owner."""
    first, changed, later, keyword = drawn
    database = Database.open(url)
    try:
        user = (await accounts.add(database, uuid.uuid4().hex)).id
        stored: Stored = {}
        for talk in first:
            stored |= await store(database, user, *talk)
        assert await found(database, user, keyword) == expected(stored, keyword, kind)
        await index(database)
        await change(database, user, stored, changed)
        assert await found(database, user, keyword) == expected(stored, keyword, kind)
        for talk in later:
            stored |= await store(database, user, *talk)
        async with database.sessions.begin() as session:  # as an earlier backend stores messages
            await session.execute(update(Message).where(Message.id % 2 == 0).values(user_id=None))
        assert await found(database, user, keyword) == expected(stored, keyword, kind)
    finally:
        await database.close()


EXAMPLES: list[Drawn] = [
    ([("x", ["sun"])], [], [("y", ["the moon"])], "moon"),
    ([("x", ["sun"]), ("y", ["the moon"])], [("edited", "MOON"), ("edited", "sun")], [], "moon"),
    ([("x", ["sun"]), ("y", ["the moon"])], [("again", "moonless"), ("again", None)], [], "moon"),
    ([("x", ["the moon"]), ("y", ["the moon"]), ("z", ["sun"])], [], [], "moon"),
    ([("x", ['say "Moon" or moon'])], [], [], '"mOOn"'),
    ([("x", ["sun NOT moon*"])], [], [], "SUN not Moon*"),
    ([("x", ["100%", "a_b", "a\\b"]), ("y", ["100", "axb"])], [], [], "%"),
    ([("x", ["100% sure", "100 unsure"])], [], [], "100% s"),
    ([("x", ["Straße", "STRASSE", "Cafe\u0301 \u212aelvin"])], [], [], "straße"),
    ([("x", ["Straße", "Cafe\u0301 \u212aelvin"])], [], [], "kelvin"),
]


def examples(test: Any) -> Any:
    """Add the examples to a property."""
    for drawn in EXAMPLES:
        test = example(drawn=drawn)(test)
    return test


@partitioned.ordinary_only
@examples
@given(drawn=searched())
def test_a_search_finds_what_python_finds(database_url: str, kind: str, eager: None, drawn: Drawn) -> None:
    asyncio.run(check(database_url, kind, drawn))


@pytest.mark.long
@debian_postgresql.needed
@examples
@settings(max_examples=10)
@given(drawn=searched())
def test_an_index_of_pg_trgm_finds_the_same(debian_url: str, eager: None, drawn: Drawn) -> None:
    asyncio.run(check(debian_url, "postgresql", drawn))


@pytest.fixture(scope="module")
def debian_url(debian_server: str) -> str:
    """A database whose planner prefers the index."""
    url = debian_postgresql.migrated(debian_server, "searches")
    raw_sql.run(url, "ALTER DATABASE searches SET enable_seqscan = off", "DROP INDEX ix_messages_conversation_id")
    return url


@partitioned.ordinary_only
@pytest.mark.parametrize("common", [0, 45], ids=["scan", "index"])
async def test_messages_without_an_owner_are_found(
    database: Database, ayu: Caller, monkeypatch: pytest.MonkeyPatch, common: int, eager: None
) -> None:
    monkeypatch.setattr(trigrams, "_MOST_CANDIDATES", common)
    stored = await store(database, ayu.id, "x", ["the moon"])
    await index(database)
    async with database.sessions.begin() as session:
        await session.execute(update(Message).values(user_id=None))
    assert await found(database, ayu.id, "moon") == {id_: ["the moon"] for id_ in stored}


async def test_erased_content_is_not_found(
    client: httpx.AsyncClient, database: Database, ayu: Caller, eager: None
) -> None:
    (id_,) = await store(database, ayu.id, "moon", ["a moon"])
    await index(database)
    assert await found(database, ayu.id, "moon")
    assert (await client.delete(f"/conversations/{id_}", headers=ayu.headers)).status_code == 204
    assert await found(database, ayu.id, "moon") == {}
