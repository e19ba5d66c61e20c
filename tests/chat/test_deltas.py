"""The deltas of a stream, joined, are the stored content: whatever the upstream sends, and however it ends."""

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from app.db.database import Database
from app.errors import UpstreamError, UpstreamTimeout
from app.settings import Settings
from main import create_app
from services.chat.upstream import OfflineUpstream, Reply
from tests.support import accounts, invariants
from tests.support.accounts import SECRET_KEY, Caller

TEXTS = st.text(st.sampled_from("ab \t\r\n\x00\x85\u2028\ud83d\ude00\udfff\u00e9\U0001f600"), max_size=8)
FAILURES: dict[str, Exception | None] = {
    "none": None,
    "accepted": UpstreamError("It broke off.", accepted=True),
    "refused": UpstreamError("It refused."),
    "late": UpstreamTimeout("It did not go on.", accepted=True),
    "unexpected": RuntimeError("nobody expects this"),
}


class Script(NamedTuple):
    """What an upstream does: it sends pieces, and fails, or returns a content that may be another."""

    pieces: list[str]
    content: str | None
    failure: str


SCRIPTS = st.builds(
    Script, st.lists(TEXTS, max_size=6), st.none() | TEXTS, st.sampled_from(["none"] * 3 + sorted(FAILURES))
)


class Scripted(OfflineUpstream):
    """An upstream that follows a script."""

    script = Script([], None, "none")

    async def ask(self, prompts: Any, model: str, hear: Any, heard: Any = None, parameters: Any = None) -> Reply:
        """Follow the script."""
        for piece in self.script.pieces:
            if hear is not None:
                hear(piece)
        if failure := FAILURES[self.script.failure]:
            raise failure
        content = self.script.content
        return Reply("".join(self.script.pieces) if content is None else content, model, None)


class Streamed(NamedTuple):
    """A stream as its caller hears it."""

    content: str
    event: str
    data: dict[str, Any]


class Chat:
    """The application with a scripted upstream, in a loop of its own, so that hypothesis can run it many times."""

    def __init__(self, runner: asyncio.Runner, url: str) -> None:
        self.run = runner.run
        self.database = Database.open(url)
        self.app: FastAPI = create_app(Settings.load(database_url=url, secret_key=SECRET_KEY))
        self.lifespan = self.app.router.lifespan_context(self.app)
        self.upstream = Scripted()
        self.names = 0
        self.run(self._start())

    async def _start(self) -> None:
        await self.lifespan.__aenter__()
        self.app.state.foundation.runner.upstream = self.upstream
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")
        self.caller: Caller = await accounts.add(self.database, "ayu")

    async def stop(self) -> None:
        await self.client.aclose()
        await self.lifespan.__aexit__(None, None, None)
        await self.database.close()

    async def ask(self, key: str, message: str = "Hi") -> Streamed:
        """Ask with a stream."""
        headers = self.caller.headers | {"Idempotency-Key": key}
        answer = await self.client.post("/chat", headers=headers, json={"message": message})
        if answer.headers["content-type"] == "application/problem+json":
            return Streamed("", "error", answer.json())
        events = [block.split("\n") for block in answer.text.split("\n\n") if block and not block.startswith(":")]
        read = [(lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in events]
        assert read[0][0] == "start"
        *deltas, (event, data) = read[1:]
        assert all(name == "delta" for name, _ in deltas)
        return Streamed("".join(delta["content"] for _, delta in deltas), event, data)

    async def last(self) -> tuple[str, str]:
        """The status and the content of the last answer."""
        async with self.database.reads() as session:
            statement = text("SELECT status, content FROM messages WHERE role = 'assistant' ORDER BY id DESC LIMIT 1")
            row = (await session.execute(statement)).one()
            return row.status, row.content

    async def check(self, script: Script) -> None:
        """Ask, and ask again under the same key."""
        self.upstream.script = script
        self.names += 1
        heard = await self.ask(str(self.names))
        status, content = await self.last()
        assert heard.content == content
        assert heard.event == ("done" if status == "complete" else "error")
        again = await self.ask(str(self.names))
        assert again.event == heard.event
        if status == "complete":
            assert heard.data["message"]["content"] == content
            assert (again.content, again.data) == (content, heard.data)
        else:
            assert status == ("interrupted" if content else "failed")
        assert not any(char == "\x00" or "\ud800" <= char <= "\udfff" for char in content)


@pytest.fixture
def chat(database_url: str) -> Iterator[Chat]:
    """The application."""
    with asyncio.Runner() as runner:
        chat = Chat(runner, database_url)
        yield chat
        runner.run(chat.stop())


@example(Script(["Hello ", "there "], "Hello there", "none"))
@example(Script(["Hello"], "Hello there", "none"))
@example(Script([], "Hello", "none"))
@example(Script(["a\x00", "\ud83d", "\ude00"], None, "none"))
@settings(max_examples=40 if os.environ.get("LONG") else 8)
@given(script=SCRIPTS)
def test_whatever_an_upstream_sends_is_stored_as_it_was_heard(chat: Chat, script: Script) -> None:
    chat.run(chat.check(script))
    chat.run(invariants.check(chat.database))


@example("Hi ")
@example(" two  blanks ")
@settings(max_examples=20 if os.environ.get("LONG") else 5)
@given(message=st.text(min_size=1, max_size=30).filter(lambda text: "\x00" not in text))
def test_the_deltas_of_the_built_in_model_are_what_is_stored(chat: Chat, message: str) -> None:
    chat.app.state.foundation.runner.upstream = OfflineUpstream()
    chat.names += 1
    for _ in range(2):
        heard = chat.run(chat.ask(str(chat.names), message))
        assert heard.event == "done"
        assert heard.content == heard.data["message"]["content"] == f"You said: {message}"
