"""Words of a failure without keys and without what users wrote."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chat.openai_upstream import OpenAIUpstream
from services.chat.redaction import HIDDEN, MAX_WORDS, Redaction, secrets_of
from tests.support.failing_service import DONE, PROMPTS, SECRET_MESSAGE, error, failure, lines, refusal
from tests.support.openai_server import KEY, Answer, OpenAIServer

LEAKY = [
    f"Incorrect API key provided: {KEY}. Find it at https://x.example/keys?token={KEY}",
    f"Authorization: Bearer {KEY}",
    f"bad header {{'authorization': 'Bearer {KEY}', 'x-api-key': '{KEY[:15]}'}}",
    f"wrong key {KEY[:12]}***{KEY[-4:]}",
    "wrong key sk-proj-abcdefghijkl and xai-12345678 and AIzaSyDUMMYDUMMY and eyJhbGciOiJIUzI1NiJ9.eyJh.sig",
    f"could not parse {json.dumps(PROMPTS)}",
    f"could not parse {json.dumps(json.dumps(PROMPTS))}",
    f"flagged: '{SECRET_MESSAGE[:40]}…' and 'Wilhelmina' and \"{SECRET_MESSAGE.upper()}\"",
    f"flagged: {'-'.join(SECRET_MESSAGE.split())}",
    "x" * 100_000 + KEY,
]


@pytest.mark.parametrize("words", LEAKY)
@pytest.mark.parametrize("kind", ["status", "200", "stream"])
async def test_no_one_sees_a_key_or_a_users_message_in_a_failure(
    model: OpenAIServer, upstream: OpenAIUpstream, caplog: pytest.LogCaptureFixture, words: str, kind: str
) -> None:
    body = error(words, param="messages", code=f"bad {KEY}")
    if kind == "status":
        model.answer = refusal(400, body)
    elif kind == "200":
        model.answer = Answer(raw=[json.dumps(body).encode()])
    else:
        model.answer = Answer(raw=[f"data: {json.dumps(body)}\n\n".encode(), DONE])
    failed = await failure(upstream)
    [line] = lines(caplog)
    for text in (line, failed.detail, str(failed)):
        assert len(text) < 600
        assert "\n" not in text
        for secret in (KEY, KEY[:12], "abcdefghijkl", "12345678", "AIzaSy", "eyJ", "Wilhelmina", "WILHELMINA", "90817"):
            assert secret not in text
        assert "Bartholomew" not in text
        assert "piggy bank" not in text.lower()


def test_what_is_known_of_a_base_url_is_hidden_as_well() -> None:
    url = "https://operator:p4ssw0rd@models.example/v1?code=function-key-123"
    cleaned = Redaction(secrets_of("", url), []).clean(f"cannot call {url}, p4ssw0rd, function-key-123")
    assert "p4ssw0rd" not in cleaned
    assert "function-key-123" not in cleaned
    assert "models.example" in cleaned


def test_words_about_a_very_long_conversation_are_hidden() -> None:
    assert Redaction([], ["x" * 500_000]).clean("the words") == HIDDEN


@given(st.text(max_size=2000), st.lists(st.text(max_size=60), max_size=3), st.text(min_size=3, max_size=30))
def test_cleaned_words_are_one_bounded_line_without_the_secret(words: str, prompts: list[str], secret: str) -> None:
    cleaned = Redaction([secret], prompts).clean(f"{words} {secret} {words}")
    assert len(cleaned) <= MAX_WORDS
    assert cleaned.isprintable()
    assert secret not in cleaned.replace(HIDDEN, "\0") or not secret.isprintable() or secret in "…"
