"""Any bytes of a service through `POST /chat`: never an error of ours, never pending, counted at most once."""

import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from app.db.database import Database
from tests.support import accounts, invariants, openai_server
from tests.support.accounts import Caller
from tests.support.chunks import DONE, FAILED, chunk, event, usage
from tests.support.openai_server import Answer, OpenAIServer

EXAMPLES = 100 if os.environ.get("LONG") else 8
REPORTS = ((10, 0), (190, 2), (190, 50), (190, 100))


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The application asks the tests' model."""
    return openai_server.settings(database_url, model)


@pytest.fixture
async def caller(database: Database) -> Caller:
    """Who asks."""
    return await accounts.add(database, "ayu")


def reported(prompt: int, completion: int) -> dict[str, Any]:
    return usage(prompt, completion, total_tokens=prompt + completion)


HARMLESS = (
    chunk({}, error={"message": "", "type": "", "code": None}),
    *(b": ping\n\n", b"data:\n\n", b"retry: 3000\n\n", b"id: 1\n\n", b"data: null\n\n", b'data: {"type":"ping"}\n\n'),
    event({"choices": None}),
    event({"choices": [{"index": 0, "delta": None}]}),
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Hmm"}),
    chunk({}, choices=[], usage=None),
    chunk({}, choices=[], usage=usage(0, 0, total_tokens=0)),
)
SAID = (chunk({"content": "Hello"}), chunk({"content": " there"}), chunk({"refusal": "No."}))
USED = tuple(chunk({}, choices=[], usage=reported(*report)) for report in REPORTS)
ENDS = tuple(chunk({}, reason) for reason in ("stop", "length", "content_filter", "error", "Because"))
HARMFUL = (
    *(DONE, b"data: {garbage\n\n", b"data: [1]\n\n", b"\xff\xfe\x00", event({"error": FAILED}), event({"choices": 1})),
    event({"choices": [{"index": 0, "delta": {"content": 5}}], "usage": {"prompt_tokens": -1}}),
    event({"usage": {"prompt_tokens": 10**30, "completion_tokens": "many"}}),
    b'{"error":"no more"}',
)
ANY = st.lists(st.sampled_from([*HARMLESS, *SAID, *USED, *ENDS, *HARMFUL]) | st.binary(max_size=20), max_size=12)


@st.composite
def split(draw: st.DrawFn, events: st.SearchStrategy[list[bytes]], *, cuts: bool) -> list[bytes]:
    """The bytes of the events, in parts as a network would bring them; perhaps only the first ones."""
    data = b"".join(draw(events))
    if cuts and draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))]
    ends = sorted(draw(st.sets(st.integers(0, len(data)), max_size=4)) | {0, len(data)})
    return [part for start, end in itertools.pairwise(ends) if (part := data[start:end])]


async def asked(client: httpx.AsyncClient, caller: Caller, *, stream: bool) -> httpx.Response:
    body = {"message": "Hi", "stream": stream}
    answer = await client.post("/chat", headers=caller.headers, json=body)
    assert answer.status_code in ((200,) if stream else (200, 429, 502, 504)), answer.text
    if stream:
        names = [line for line in answer.text.splitlines() if line.startswith("event: ")]
        assert names[0] == "event: start"
        assert names[-1] in ("event: done", "event: error")
        assert set(names[1:-1]) <= {"event: delta"}
        last = json.loads(answer.text.strip().rpartition("data: ")[2])
        assert last.get("status", 502) in (429, 502, 504), last
    return answer


async def last_of(database: Database) -> Any:
    async with database.reads() as session:
        pending = await session.scalar(text("SELECT count(*) FROM messages WHERE status = 'pending'"))
        assert pending == 0
        statement = "SELECT * FROM messages WHERE role = 'assistant' ORDER BY id DESC LIMIT 1"
        return (await session.execute(text(statement))).one()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=EXAMPLES)
@given(raw=split(ANY, cuts=True), stream=st.booleans(), end=st.sampled_from(["complete", "cut"]))
async def test_no_bytes_break_the_count(
    client: httpx.AsyncClient,
    database: Database,
    caller: Caller,
    model: OpenAIServer,
    raw: Sequence[bytes],
    stream: bool,
    end: Any,
) -> None:
    before = sum(totals.message_count for totals in (await invariants.check(database)).values())
    model.answer = Answer(raw=raw, end=end)
    await asked(client, caller, stream=stream)
    row = await last_of(database)
    after = sum(totals.message_count for totals in (await invariants.check(database)).values())
    assert after - before == (0 if row.input_tokens is None else 1)
    assert row.status in ("complete", "interrupted", "failed")
    assert row.content or row.status != "interrupted"


GOOD = st.lists(st.sampled_from([*HARMLESS, *SAID, *USED]), max_size=10)


@settings(max_examples=EXAMPLES)
@given(data=st.data(), before_text=GOOD, after_text=GOOD, stream=st.booleans(), ends=st.booleans())
async def test_the_fullest_report_is_what_counts(
    client: httpx.AsyncClient,
    database: Database,
    caller: Caller,
    model: OpenAIServer,
    data: st.DataObject,
    before_text: list[bytes],
    after_text: list[bytes],
    stream: bool,
    ends: bool,
) -> None:
    report = data.draw(st.sampled_from(REPORTS[1:]))
    full = chunk({}, choices=[], usage=reported(*report))
    last = data.draw(st.permutations([full, DONE]))
    end = [ENDS[0], *last] if ends else [full, event({"error": FAILED})]
    events = [*before_text, SAID[0], *after_text, *end]
    model.answer = Answer(raw=data.draw(split(st.just(events), cuts=False)))
    await asked(client, caller, stream=stream)
    row = await last_of(database)
    seen = [report, *(REPORTS[USED.index(item)] for item in (*before_text, *after_text) if item in USED)]
    assert (row.input_tokens, row.output_tokens) == (max(prompt for prompt, _ in seen), max(said for _, said in seen))
    assert row.usage_estimated in (0, False)
    assert row.status == ("complete" if ends else "interrupted")
    await invariants.check(database)
