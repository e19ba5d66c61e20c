"""Streams that are odd and harmless, as bytes through `POST /chat`: the answer is complete, with what was reported."""

import gzip
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

from app.db.database import Database
from services.usage import service_addresses
from tests.support import openai_server
from tests.support.accounts import Caller
from tests.support.billed_answers import A, B, Stored, Talk, U, answer_to, check, whole
from tests.support.chunks import DONE, chunk, event, usage
from tests.support.openai_server import Answer, OpenAIServer

pytestmark = pytest.mark.any_database


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer, tmp_path: Path) -> dict[str, Any]:
    """The application asks the tests' model, and the operator has a price of their own."""
    (tmp_path / "prices.toml").write_text('[[price]]\nmodel = "my-alias"\ninput = 1\noutput = 2\n')
    return openai_server.settings(database_url, model) | {"prices_file": tmp_path / "prices.toml"}


def chunk_without(*, choices: Any = (), **more: Any) -> bytes:
    value = {"id": "c1", "model": "gpt-4o"} | ({} if choices == () else {"choices": choices}) | more
    return event(value)


REPORT = usage(190, 100, total_tokens=290)
SO_FAR = [
    chunk({"content": piece}, usage=usage(190, count, total_tokens=190 + count))
    for piece, count in (("Hel", 1), ("lo", 2))
]
PLAIN = b"".join([A, B, U, DONE])
BODY = b"".join(whole(REPORT))
GZIP = {"Content-Encoding": "gzip"}
STREAMS: Mapping[str, Answer] = {
    "a choice without a delta": Answer(
        raw=[A, chunk_without(choices=[{"index": 0, "content_filter_offsets": {}}]), B, U, DONE]
    ),
    "a null delta": Answer(raw=[chunk_without(choices=[{"index": 0, "delta": None}]), A, B, U, DONE]),
    "null choices": Answer(raw=[chunk_without(choices=None), A, B, chunk_without(choices=None, usage=REPORT), DONE]),
    "no choices": Answer(raw=[chunk_without(), A, B, chunk_without(usage=REPORT), DONE]),
    "null and a ping": Answer(raw=[b"data: null\n\n", A, b'data: {"type":"ping"}\n\n', B, U, DONE]),
    "empty data, a pause, an id, a comment": Answer(
        raw=[b"data:\n\n", b"retry: 3000\n\n", A, B, U, b"id: 1\n\n", b"data:\n\n", b": ping\n\n", DONE]
    ),
    "an open socket": Answer(raw=[A, B, U], end="open"),
    "an open socket after the end": Answer(raw=[A, B, U, DONE], end="open"),
    "a cut after the report": Answer(raw=[A, B, U], end="cut"),
    "a full report, then an empty one": Answer(raw=[A, B, U, chunk({}, choices=[], usage=usage(0, 0)), DONE]),
    "cumulative reports": Answer(raw=[*SO_FAR, B, U, DONE]),
    "the same report twice": Answer(raw=[A, B, U, U, DONE]),
    "a body": Answer(raw=[BODY], kind="application/json"),
    "CRLF": Answer(raw=[PLAIN.replace(b"\n", b"\r\n")]),
    "CR": Answer(raw=[PLAIN.replace(b"\n", b"\r")]),
    "no space": Answer(raw=[PLAIN.replace(b"data: ", b"data:")]),
    "a BOM": Answer(raw=[b"\xef\xbb\xbf" + PLAIN]),
    "compressed": Answer(raw=[gzip.compress(PLAIN)], headers={"Content-Encoding": "gzip"}),
    "a compressed body": Answer(
        raw=[gzip.compress(BODY)], headers={"Content-Encoding": "gzip"}, kind="application/json"
    ),
    "one byte a read": Answer(raw=[bytes([byte]) for byte in PLAIN]),
    "JSON lines": Answer(raw=[PLAIN.replace(b"data: ", b"").replace(b"\n\n", b"\n")]),
}


@pytest.mark.sampled(1)
async def test_what_is_harmless_changes_nothing(talk: Talk, subtests: pytest.Subtests) -> None:
    for name, answer in STREAMS.items():
        with subtests.test(name):
            began = time.monotonic()
            message, _ = await talk.hear(answer, Stored((190, 100), "0.001475"))
            assert time.monotonic() - began < 5
            assert (message["status"], message["content"]) == ("complete", "Hello")


LONG = {"a chunk of 3 MB": ["x" * 3_000_000], "20,000 chunks": ["Hello "] * 20_000}


@pytest.mark.parametrize("pieces", LONG.values(), ids=LONG)
@pytest.mark.sampled(1)
async def test_a_long_answer_is_whole(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, pieces: list[str]
) -> None:
    model.answer = Answer(raw=[b"".join([*(chunk({"content": piece}) for piece in pieces), B, U, DONE])])
    await answer_to(client, ayu, is_stream=True)
    await check(database, Stored((190, 100), "0.001475", content="".join(pieces)))


async def test_an_error_of_a_moment_is_tried_again(talk: Talk) -> None:
    failure = {"error": {"message": "Internal server error", "type": "internal_error"}}
    answers = iter(
        [Answer(raw=[event(failure), DONE]), Answer(raw=[json.dumps(failure).encode()]), Answer(raw=[PLAIN])]
    )
    talk.model.answer = lambda _request: next(answers)
    await answer_to(talk.client, talk.caller, is_stream=talk.is_stream)
    await check(talk.database, Stored((190, 100), "0.001475"))


async def test_stream_options_that_are_refused_are_left_out(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    unknown = json.dumps({"error": {"message": "Unknown parameter: 'stream_options'.", "param": "stream_options"}})
    model.answer = lambda sent: (
        Answer(status=400, raw=[unknown.encode()]) if "stream_options" in sent else Answer(raw=[PLAIN])
    )
    for _ in range(2):
        await answer_to(client, ayu, is_stream=True)
        await check(database, Stored((190, 100), "0.001475"))
    assert ["stream_options" in request.body for request in model.requests] == [True, False, False]


LOCAL: Mapping[str, str | None] = {
    "deepseek-r1:7b": None,
    "openai/gpt-oss-20b": None,
    "my-alias": "0.00039",
    "gpt-4o": "0.001475",
    "groq/llama-3.1-8b-instant": "0.0000175",
}


async def test_a_local_service_costs_what_the_operator_says(talk: Talk, subtests: pytest.Subtests) -> None:
    for name, cost in LOCAL.items():
        # Ends before the patch of the model's own fixture does: a `monkeypatch` would restore that patch for good.
        with subtests.test(name), mock.patch.object(service_addresses, "is_local", return_value=True):
            await talk.report(REPORT, Stored((190, 100), cost), name=name)


async def test_an_own_price_holds_though_another_model_answers(talk: Talk) -> None:
    for answered in ("gpt-4o", "nobody/knows-it"):
        _, row = await talk.report(REPORT, Stored((190, 100), "0.00039"), name=answered, model="my-alias")
        assert (row.model, row.price_source) == (answered, "prices.toml my-alias")
