"""What services really send, as bytes through `POST /chat`: what is stored, counted, priced and shown."""

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import httpx
import pytest

from app.db.database import Database
from tests.support import openai_server
from tests.support.accounts import Caller
from tests.support.billed_answers import A, B, Stored, Talk, U, answer_to, stored, stream, whole
from tests.support.chunks import DONE, FAILED, chunk, event, usage
from tests.support.openai_server import Answer, OpenAIServer

pytestmark = pytest.mark.any_database


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer) -> dict[str, Any]:
    """The application asks the tests' model."""
    return openai_server.settings(database_url, model)


EARLY = chunk({"content": "Hello"}, usage=usage(190, 2, total_tokens=192))


REPORTED: Mapping[str, tuple[str, dict[str, Any], Stored]] = {
    "reasoning beside": (
        "grok-4",
        usage(10120, 1499, total_tokens=14428, prompt_tokens_details={"cached_tokens": 128})
        | {"completion_tokens_details": {"reasoning_tokens": 2809}},
        Stored((10120, 4308), "0.094692"),
    ),
    "cached beside": (
        "grok-4-0709",
        usage(348, 435, total_tokens=7583, prompt_tokens_details={"cached_tokens": 6800}),
        Stored((7148, 435), "0.012669"),
    ),
    "written inside": (
        "claude-sonnet-4-5",
        usage(5020, 40, total_tokens=5060, cache_creation_input_tokens=5000)
        | {"prompt_tokens_details": {"cached_tokens": 0}},
        Stored((5020, 40), "0.01941"),
    ),
    "written and read": (
        "claude-opus-4-5",
        usage(98805, 5120, total_tokens=103925, cache_creation_input_tokens=32435)
        | {"prompt_tokens_details": {"cached_tokens": 66360}},
        Stored((98805, 5120), "0.36394875"),
    ),
    "thinking only in the total": ("gpt-4o", usage(20, 198, total_tokens=623), Stored((20, 603), "0.00608")),
    "read and written beside": (
        "claude-sonnet-4-5",
        usage(50, 7, cache_read_input_tokens=100000, cache_creation_input_tokens=248),
        Stored((100298, 7), "0.031185"),
    ),
    "a cache hit": ("gpt-4o", usage(1000, 9, prompt_cache_hit_tokens=896), Stored((1000, 9), "0.00147")),
    "numbers as texts and floats": ("gpt-4o", usage(19.0, "190"), Stored((19, 190), "0.0019475")),
    "half a report": ("gpt-4o", usage(19, 37.25), Stored((19, 1), "0.0000575", estimated=True)),
    "no input beside an answer": ("gpt-4o", usage(0, 5), Stored((17, 5), "0.0000925", estimated=True)),
    "a cost": ("openai/gpt-4o", usage(100, 50, total_tokens=150, cost=0.00123), Stored((100, 50), "0.00123")),
    "a cost of an unlisted model": ("nobody/knows-it", usage(100, 50, cost=0.00777), Stored((100, 50), "0.00777")),
    "a free model": ("meta-llama/llama-3.3-70b-instruct:free", usage(100, 50, cost=0), Stored((100, 50), "0")),
    "a tier": ("gpt-5-mini", usage(1000, 100, total_tokens=1100, service_tier="flex"), Stored((1000, 100), "0.000225")),
    "zeros beside an answer": ("gpt-4o", usage(0, 0, total_tokens=0), Stored((17, 1), "0.0000525", estimated=True)),
    "a path before the name": ("models/gemini-2.5-flash", usage(1000, 100), Stored((1000, 100), "0.00055")),
}


@pytest.mark.sampled(1)
async def test_what_a_service_reports_is_counted_and_priced(talk: Talk, subtests: pytest.Subtests) -> None:
    for name, (answered, report, expected) in REPORTED.items():
        with subtests.test(name):
            message, _ = await talk.report(report, expected, name=answered)
            assert (message["finish_reason"], message["cost"]) == ("stop", expected.cost)


ENDED: Mapping[str, tuple[Sequence[bytes], Stored]] = {
    "an error after usage": (
        [EARLY, chunk({"content": ""}, "error", error=FAILED), DONE],
        Stored((190, 2), "0.000495", "interrupted", "error"),
    ),
    "the reason error": (
        [A, chunk({}, "error"), U, DONE],
        Stored((190, 100), "0.001475", "interrupted", "error"),
    ),
    "a cut after usage": ([EARLY], Stored((190, 2), "0.000495", "interrupted", "error")),
    "an error instead of an answer": (
        [event({"error": {"message": "Bad request", "type": "invalid_request_error"}}), DONE],
        Stored(None, None, "failed", "error", "", estimated=None),
    ),
    "a refusal": (
        [chunk({"refusal": "I cannot help."}), chunk({}, "content_filter"), U, DONE],
        Stored((190, 100), "0.001475", reason="content_filter", content="I cannot help."),
    ),
    "a refusal that stops": (
        [chunk({"refusal": "I cannot help."}), B, U, DONE],
        Stored((190, 100), "0.001475", reason="refusal", content="I cannot help."),
    ),
    "a filter": (
        [chunk({}, "content_filter"), U, DONE],
        Stored((190, 100), "0.001475", reason="content_filter", content=""),
    ),
    "an answer that is too long": ([A, chunk({}, "length"), U], Stored((190, 100), "0.001475", reason="length")),
    "reasoning": (
        [chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hmm"}]}]}), A, B, U, DONE],
        Stored((190, 100), "0.001475"),
    ),
    "usage in the choice's place": (
        [A, event({"id": "c1", "model": "gpt-4o", "choices": None}), B, U, DONE],
        Stored((190, 100), "0.001475"),
    ),
    "Groq's usage": (
        [A, chunk({}, "stop", x_groq={"id": "req", "usage": usage(123, 119, total_tokens=242)}), DONE],
        Stored((123, 119), "0.0014975"),
    ),
    "a full report, then an empty one": (
        [A, B, U, chunk({}, choices=[], usage=usage(0, 0, total_tokens=0)), DONE],
        Stored((190, 100), "0.001475"),
    ),
    "a body instead of a stream": (whole(usage(190, 100)), Stored((190, 100), "0.001475")),
    "reasoning without a report": (
        [chunk({"reasoning_content": "one two three four"}), A, B, DONE],
        Stored((17, 5), "0.0000925", estimated=True),
    ),
}


@pytest.mark.sampled(1)
async def test_how_an_answer_ended_is_stored_and_shown(talk: Talk, subtests: pytest.Subtests) -> None:
    for name, (raw, expected) in ENDED.items():
        with subtests.test(name):
            message, row = await talk.hear(Answer(raw=raw), expected)
            assert message.get("finish_reason", "error") == expected.reason
            shown = await talk.client.get(f"/conversations/{row.conversation_id}", headers=talk.caller.headers)
            assert shown.json()["messages"][-1]["finish_reason"] == expected.reason


async def test_further_counts_and_the_tier_are_kept(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    report = usage(1000, 100, total_tokens=1100, service_tier="flex", cost=0.5)
    model.answer = Answer(raw=stream(report | {"completion_tokens_details": {"reasoning_tokens": 64}}))
    await answer_to(client, ayu, is_stream=True)
    row = await stored(database)
    assert json.loads(row.usage_details)["service_tier"] == "flex"
    assert Decimal(row.cost if row.cost < 1 else Decimal(row.cost).scaleb(-10)) == Decimal("0.5")
    assert "gpt-4o" not in row.price_source, "the service's own cost is not the list's"


async def test_a_long_name_of_a_model_is_cut(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    model.answer = Answer(model="m" * 3000)
    await answer_to(client, ayu, is_stream=False)
    assert (await stored(database)).model == "m" * 255
