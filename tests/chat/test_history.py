"""What a model is sent of a conversation: alternating roles, no failed questions, and no more than it takes."""

import itertools
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from app.db.database import Database
from services.chat import history, settlement, tokenizer
from services.chat.tokenizer import Prompt, TokenCounts
from tests.support import invariants, problems
from tests.support.accounts import SECRET_KEY, Caller
from tests.support.billed_answers import whole
from tests.support.openai_server import Answer, OpenAIServer, usage

pytestmark = pytest.mark.any_database

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
TURNS = 200


@pytest.fixture
def context_tokens() -> int | None:
    """`LLM_CONTEXT_TOKENS`."""
    return None


@pytest.fixture
def app_settings(database_url: str, model: OpenAIServer, context_tokens: int | None) -> dict[str, Any]:
    """The application asks the tests' model."""
    llm = {"llm_base_url": model.url, "llm_model": "gpt-4o", "llm_context_tokens": context_tokens}
    return {"database_url": database_url, "secret_key": SECRET_KEY, **llm}


MESSAGES = st.builds(
    lambda role, content, status, second: {
        "role": role,
        "content": content,
        "status": status,
        "created_at": None if second is None else NOW + timedelta(seconds=second),
        "image_urls": None,
    },
    st.sampled_from(["user", "assistant", "assistant", "system", "tool", None]),
    st.sampled_from([None, "", "a", "b", "c\x00"]),
    st.sampled_from([None, "complete", "complete", "interrupted", "failed", "pending"]),
    st.one_of(st.none(), st.integers(0, 5)),
)
NEW = {"content": "new", "status": "complete", "created_at": NOW + timedelta(seconds=9), "image_urls": None}


def sent_of(messages: list[dict[str, Any]]) -> list[Prompt]:
    turn = [NEW | {"role": "user"}, NEW | {"role": "assistant", "content": None, "status": "pending"}]
    return history.alternating([SimpleNamespace(**{"image_urls": None} | message) for message in [*messages, *turn]])


def is_alternating(sent: list[Prompt]) -> bool:
    said = [prompt for prompt in sent if prompt["role"] != "system"]
    roles = [prompt["role"] for prompt in said]
    return roles == [*["user", "assistant"] * (len(said) // 2), "user"] and all(prompt["content"] for prompt in sent)


@given(st.lists(MESSAGES, max_size=20))
def test_roles_always_alternate(messages: list[dict[str, Any]]) -> None:
    sent = sent_of(messages)
    assert is_alternating(sent)
    assert sent[-1] == {"role": "user", "content": "new"}
    assert [prompt["role"] for prompt in sent[1:]].count("system") == 0, "only the first may be the system's"


@given(st.lists(st.sampled_from(["complete", "interrupted", "failed", "empty"]), max_size=20))
def test_exactly_the_answered_questions_are_sent(ends: list[str]) -> None:
    messages, expected = [], []
    for number, end in enumerate(ends):
        status = "complete" if end == "empty" else end
        at = NOW - timedelta(seconds=100 - number)
        answer = "" if end == "empty" else f"A{number}"
        messages.append({"role": "user", "content": f"Q{number}", "status": "complete", "created_at": at})
        messages.append({"role": "assistant", "content": answer, "status": status, "created_at": at})
        expected += [f"Q{number}", answer] if end in ("complete", "interrupted") else []
    assert [prompt["content"] for prompt in sent_of(messages)] == [*expected, "new"]


def test_turns_at_the_same_time_keep_their_questions() -> None:
    first, second = NOW, NOW + timedelta(seconds=1)
    messages = [
        {"role": "user", "content": "Q1", "status": "complete", "created_at": first},
        {"role": "user", "content": "Q2", "status": "complete", "created_at": second},
        {"role": "assistant", "content": "", "status": "failed", "created_at": first},
        {"role": "assistant", "content": "A2", "status": "complete", "created_at": second},
    ]
    assert [prompt["content"] for prompt in sent_of(messages)] == ["Q2", "A2", "new"]


@given(st.lists(st.integers(1, 300), max_size=8), st.integers(10, 600), st.booleans())
async def test_what_is_sent_fits_and_is_as_much_as_fits(words: list[int], context: int, has_system: bool) -> None:
    sent: list[Prompt] = [{"role": "system", "content": "Be kind."}] if has_system else []
    for count in words:
        sent += [{"role": "user", "content": "word " * count}, {"role": "assistant", "content": "fine"}]
    sent.append({"role": "user", "content": "And?"})
    kept = await history.fitting(sent, context)
    assert is_alternating(kept)
    dropped = len(sent) - len(kept)
    start = 1 if has_system else 0
    assert kept == sent[:start] + sent[start + dropped :]
    size = sum(tokenizer.count(prompt["content"]) + 4 for prompt in kept)
    assert size <= context - context // 4 or len(kept) == start + 1
    if dropped:
        assert size + sum(len(p["content"].encode()) // 3 + 5 for p in sent[start + dropped - 2 : start + dropped]) > (
            context - context // 4
        )


async def test_a_short_history_is_not_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tokenizer, "count")
    said: list[Prompt] = [{"role": "user", "content": "word " * 10_000}]
    assert await history.fitting(said, 32_768) == said


async def test_what_the_answer_may_take_is_left_free() -> None:
    said: list[Prompt] = []
    for _ in range(8):
        said += [{"role": "user", "content": "word " * 100}, {"role": "assistant", "content": "fine"}]
    said.append({"role": "user", "content": "And?"})
    sizes = {most: len(await history.fitting(said, 1000, most)) for most in (None, 10, 700, 990, 1000, 9000)}
    assert sizes == {None: 13, 10: 17, 700: 5, 990: 1, 1000: 13, 9000: 13}


@given(st.integers(0, 20), st.booleans())
def test_the_older_half_is_left_out_until_one_question_is_left(exchanges: int, has_system: bool) -> None:
    sent: list[Prompt] = [{"role": "system", "content": "Be kind."}] if has_system else []
    for number in range(exchanges):
        sent += [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": f"A{number}"}]
    sent.append({"role": "user", "content": "And?"})
    start = 1 if has_system else 0
    while len(sent) > start + 1:
        shorter = history.newer_half(sent)
        assert is_alternating(shorter)
        assert len(shorter) < len(sent)
        assert shorter == sent[:start] + sent[len(sent) - len(shorter) + start :]
        sent = shorter
    assert history.newer_half(sent) == sent


def short_of_memory(request: dict[str, Any]) -> Answer:
    """A service whose context is smaller than the price list says of the model."""
    if sum(len(message["content"]) for message in request["messages"]) > 2_000:
        return Answer(status=400, error="This model's maximum context length is 512 tokens.")
    return Answer(content="word " * 40, usage=usage(10, 5))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.sampled(1)
async def test_a_conversation_longer_than_the_model_takes_goes_on(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer, stream: bool
) -> None:
    model.answer = short_of_memory
    first = await client.post("/chat", headers=ayu.headers, json={"message": "Question", "stream": False})
    conversation = first.json()["conversation_id"]
    body = {"conversation_id": conversation, "stream": stream}
    for number in range(12):
        question = f"Question {number} " + "word " * 40
        answer = await client.post("/chat", headers=ayu.headers, json=body | {"message": question})
        assert answer.status_code == 200
        assert not stream or "event: done" in answer.text
    assert 3 <= len(model.requests[-1].body["messages"]) <= 9
    too_long = await client.post("/chat", headers=ayu.headers, json=body | {"message": "word " * 1_000})
    assert "maximum context length" in too_long.text
    assert [message["role"] for message in model.requests[-1].body["messages"]] == ["user"]
    after = await client.post("/chat", headers=ayu.headers, json=body | {"message": "Still there?"})
    assert "Still there?" in model.requests[-1].body["messages"][-1]["content"]
    assert "complete" in after.text
    [sums] = (await invariants.check(database)).values()
    assert sums.message_count == 14


async def test_only_content_is_measured_as_what_is_sent(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    """An earlier backend stored contexts of documents with messages; they are not sent to the model."""
    model.answer = Answer(content="Fine", usage=usage(10, 5))
    first = await client.post("/chat", headers=ayu.headers, json={"message": "Question", "stream": False})
    conversation, answer_id = first.json()["conversation_id"], first.json()["message"]["id"]

    async def rough() -> TokenCounts:
        return await database.read(
            lambda session: settlement.rough_tokens(session, ayu.id, conversation, answer_id + 1)
        )

    before = await rough()
    context = {"context": "x" * 17 * 2**20}
    async with database.sessions.begin() as session:
        await session.execute(text("UPDATE messages SET document_context = :context"), context)
    assert await rough() == before
    body = {"conversation_id": conversation, "message": "And now?", "stream": False}
    assert (await client.post("/chat", headers=ayu.headers, json=body)).status_code == 200
    sent = [message["content"] for message in model.requests[-1].body["messages"]]
    assert sent == ["Question", "Fine", "And now?"]


def demanding(request: dict[str, Any]) -> Answer:
    """A service that wants roles to alternate, and often fails."""
    roles = [message["role"] for message in request["messages"]]
    if roles != [*["user", "assistant"] * (len(roles) // 2), "user"]:
        return Answer(status=400, error="Conversation roles must alternate user/assistant/user/assistant/...")
    number = int(request["messages"][-1]["content"].split()[-1])
    match number % 10:
        case 3:
            return Answer(status=400, error="no")
        case 5:
            return Answer(content="", usage=usage(10, 0))
        case 7:
            return Answer(die_after=0)
        case 8:
            return Answer(raw=whole(usage(10, 5), content=None, refusal=f"Answer {number}"))
        case _:
            return Answer(content=f"Answer {number}", usage=usage(10, 5))


@pytest.mark.long
async def test_a_long_conversation_with_failures_goes_on(
    client: httpx.AsyncClient, database: Database, ayu: Caller, model: OpenAIServer
) -> None:
    model.answer = demanding
    conversation: dict[str, Any] = {}
    for number in range(TURNS):
        is_stream = number // 10 % 2 == 1
        body = {"message": f"Question {number}", "stream": is_stream, **conversation}
        answer = await client.post("/chat", headers=ayu.headers, json=body)
        if is_stream:
            assert ("event: error" if number % 10 in (3, 7) else "event: done") in answer.text
        elif number % 10 in (3, 7):
            problems.check(answer, 502)
        else:
            assert answer.status_code == 200, answer.text
            conversation = {"conversation_id": answer.json()["conversation_id"]}
    sent = [message["content"] for message in model.requests[-1].body["messages"]]
    good = [number for number in range(TURNS - 1) if number % 10 not in (3, 5, 7)]
    questions = itertools.chain.from_iterable((f"Question {number}", f"Answer {number}") for number in good)
    assert sent == [*questions, f"Question {TURNS - 1}"]
    await invariants.check(database)


@pytest.mark.parametrize("context_tokens", [200])
async def test_the_setting_cuts_the_history(
    client: httpx.AsyncClient, ayu: Caller, model: OpenAIServer, context_tokens: int
) -> None:
    conversation: dict[str, Any] = {}
    for number in range(10):
        model.answer = Answer(content=f"Answer {number}", usage=usage(10, 5))
        body = {"message": f"Question {number} " + "word " * 40, "stream": False, **conversation}
        answer = (await client.post("/chat", headers=ayu.headers, json=body)).json()
        conversation = {"conversation_id": answer["conversation_id"]}
    sent = [message["content"].split()[:2] for message in model.requests[-1].body["messages"]]
    assert len(sent) in (3, 5)
    assert sent[0][0] == "Question"
