"""Chat as the frontend of the earlier backend does: forms, and a reader that splits each network read into lines."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI

from app.db.database import Database
from services.chat import requested_models
from tests.support import openai_server, problems
from tests.support.accounts import Caller
from tests.support.openai_server import OpenAIServer

pytestmark = pytest.mark.any_database

MODEL = "gpt-4o-mini"
READ_BYTES = 8_192


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The application asks the tests' model, which knows other names than the frontend."""
    names = "Fast=quick, anthropic/claude-sonnet-4=our-claude"
    return openai_server.settings(database_url, model, MODEL) | {"model_names": names}


class Reads(httpx.ASGITransport):
    """The application, whose writes are kept apart."""

    def __init__(self, app: FastAPI) -> None:
        self.writes: list[bytes] = []

        async def kept(scope: Any, receive: Any, send: Any) -> None:
            async def keep(message: Any) -> None:
                if message["type"] == "http.response.body" and message.get("body"):
                    self.writes.append(message["body"])
                await send(message)

            await app(scope, receive, keep)

        super().__init__(kept)

    def network(self) -> Iterator[bytes]:
        """Yield each write as a network delivers it: a long one in several reads."""
        for write in self.writes:
            yield from (write[start : start + READ_BYTES] for start in range(0, len(write), READ_BYTES))


def frontend(reads: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Read a stream as the frontend does: no buffer between reads, unreadable lines are skipped, `done` ends it."""
    for read in reads:
        for line in read.decode("utf-8", "replace").split("\n"):
            if line.startswith("data: "):
                try:
                    data = json.loads(line[6:])
                except ValueError:
                    continue
                yield data
                if data.get("done"):
                    return


async def stream(app: FastAPI, caller: Caller, **request: Any) -> list[dict[str, Any]]:
    transport = Reads(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post("/chat", headers=caller.headers, **request)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return list(frontend(transport.network()))


def multipart(**fields: str) -> dict[str, Any]:
    """Return the arguments of a request with a multipart form."""
    return {"files": {name: (None, value) for name, value in fields.items()}}


FORMS: dict[str, Callable[..., dict[str, Any]]] = {
    "multipart": multipart,
    "urlencoded": lambda **fields: {"data": fields},
    "JSON": lambda **fields: {"json": fields},
}


@pytest.mark.parametrize("form", FORMS)
async def test_the_frontend_reads_the_whole_answer(app: FastAPI, ayu: Caller, form: str) -> None:
    objects = await stream(app, ayu, **FORMS[form](message="Apa kabar?"))
    assert len({item["conversation_id"] for item in objects}) == 1
    assert [item["done"] for item in objects] == [False] * (len(objects) - 1) + [True]
    content = "".join(item["content"] for item in objects)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        shown = await client.get(f"/conversations/{objects[0]['conversation_id']}", headers=ayu.headers)
    assert [message["content"] for message in shown.json()["messages"]] == ["Apa kabar?", content]


@pytest.mark.parametrize(
    "text", ["x" * 50_000, "\U0001f984 " * 20_000, "\n" * 20_000 + "x"], ids=["x", "emoji", "lines"]
)
@pytest.mark.long
async def test_the_frontend_reads_the_end_of_a_long_answer(
    app: FastAPI, model: OpenAIServer, ayu: Caller, text: str
) -> None:
    model.answer = openai_server.Answer(content=text)
    objects = await stream(app, ayu, **multipart(message="Go on"))
    assert objects[-1]["done"] is True
    assert "".join(item["content"] for item in objects) == text


async def test_a_replayed_answer_is_read_to_its_end(app: FastAPI, model: OpenAIServer, ayu: Caller) -> None:
    model.answer = openai_server.Answer(content="y" * 50_000)
    transport = Reads(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for _ in range(2):
            transport.writes.clear()
            headers = ayu.headers | {"Idempotency-Key": "once"}
            await client.post("/chat", headers=headers, **multipart(message="Go on"))
    objects = list(frontend(transport.network()))
    assert "".join(item["content"] for item in objects) == "y" * 50_000
    assert objects[-1]["done"] is True


async def test_a_failure_is_one_object_with_its_reason(app: FastAPI, model: OpenAIServer, ayu: Caller) -> None:
    model.answer = openai_server.Answer(status=400)
    *_, last = await stream(app, ayu, **multipart(message="Go on"))
    assert last["done"] is True
    assert isinstance(last["error"], str)


@pytest.mark.parametrize(
    ("fields", "asked", "category"),
    [
        ({}, MODEL, "Standard"),
        ({"model": "Fast"}, "quick", "Fast"),
        ({"model": "Fast Reasoning"}, MODEL, "Fast Reasoning"),
        ({"model": "their-own/model"}, "their-own/model", "Standard"),
        ({"model_id": "anthropic/claude-sonnet-4"}, "our-claude", "Standard"),
        ({"model_id": "openai/gpt-5"}, MODEL, "Standard"),
    ],
)
async def test_names_of_models_are_mapped(
    app: FastAPI, model: OpenAIServer, ayu: Caller, fields: dict[str, str], asked: str, category: str
) -> None:
    objects = await stream(app, ayu, **multipart(message="Hi", **fields))
    assert model.requests[-1].body["model"] == asked
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        shown = await client.get(f"/conversations/{objects[0]['conversation_id']}", headers=ayu.headers)
    assert shown.json()["model_type"] == category


@pytest.mark.parametrize("url", ["https://openrouter.ai/api/v1", "https://eu.openrouter.ai/api/v1"])
def test_openrouter_knows_its_own_names(url: str) -> None:
    assert requested_models.resolve(None, "openai/gpt-5", {}, url) == "openai/gpt-5"
    assert requested_models.resolve("Fast", None, {}, url) is None
    assert requested_models.resolve(None, "openai/gpt-5", {}, url.replace("openrouter", "notopenrouter")) is None


async def test_a_form_goes_on_with_a_conversation(app: FastAPI, client: httpx.AsyncClient, ayu: Caller) -> None:
    first = await stream(app, ayu, **multipart(message="One"))
    more = {"conversation_id": first[0]["conversation_id"], "category_id": "1", "model_id": "", "images": ""}
    ignored = {"document_contexts": "[]", "context_collection": "x", "max_context_chunks": "5"}
    ignored |= {"context_relevance_threshold": "0.5"}
    second = await stream(app, ayu, **multipart(message="Two", **more, **ignored))
    assert second[0]["conversation_id"] == first[0]["conversation_id"]
    shown = await client.get(f"/conversations/{first[0]['conversation_id']}", headers=ayu.headers)
    assert len(shown.json()["messages"]) == 4


BAD = {
    "blank": (multipart(message="  \n"), 400),
    "JSON and blank": ({"json": {"message": " \n"}}, 400),
    "empty": (multipart(message=""), 400),
    "urlencoded and blank": ({"data": {"message": " "}}, 400),
    "without a message": (multipart(model_id="x"), 422),
    "unknown field": (multipart(message="Hi", other="x"), 422),
    "NUL": (multipart(message="a\x00b"), 422),
    "too long": (multipart(message="x" * 100_001), 422),
    "an image": ({"data": {"message": "Hi"}, "files": {"images": ("a.png", b"\x89PNG", "image/png")}}, 422),
    "100 images": ({"data": {"message": "Hi"}, "files": [("images", ("../a.png", b"x"))] * 100}, 422),
    "100 fields": (multipart(**{f"f{number}": "x" for number in range(100)}), 422),
    "a field twice": ({"files": [("message", (None, "a")), ("message", (None, "b"))]}, 422),
    "100 urlencoded fields": ({"data": {f"f{number}": "x" for number in range(100)}}, 422),
    "too large": (multipart(message="x" * 12_000_000), 413),
    "a long text": (multipart(message="x" * 3_000_000), 422),
    "too large without files": ({"data": {"message": "x" * 3_000_000}}, 413),
}
RAW = {
    "no boundary": ("multipart/form-data", b"x"),
    "nonsense": ("multipart/form-data; boundary=B", b"nonsense"),
    "cut off": ("multipart/form-data; boundary=B", b'--B\r\nContent-Disposition: form-data; name="message"\r\n\r\nHi'),
    "not ASCII": ("application/x-www-form-urlencoded", "message=é".encode()),
    "not UTF-8": ("application/x-www-form-urlencoded", b"message=%ff"),
    "nothing": ("multipart/form-data; boundary=B", b""),
}


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("what", BAD)
async def test_forms_that_cannot_be_are_refused(
    client: httpx.AsyncClient, model: OpenAIServer, ayu: Caller, what: str
) -> None:
    request, status = BAD[what]
    problems.check(await client.post("/chat", headers=ayu.headers, **request), status)
    assert model.requests == []


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("what", RAW)
async def test_bodies_that_are_no_form_are_refused(
    client: httpx.AsyncClient, model: OpenAIServer, ayu: Caller, what: str
) -> None:
    kind, body = RAW[what]
    headers = ayu.headers | {"Content-Type": kind}
    problems.check(await client.post("/chat", headers=headers, content=body), 422)
    assert model.requests == []


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_other_endpoints_take_no_forms(client: httpx.AsyncClient, database: Database) -> None:
    body = f"username=x&password={quote('a password')}"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    problems.check(await client.post("/auth/login", headers=headers, content=body), 422)
