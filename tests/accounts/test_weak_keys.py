"""Signing keys that can be guessed are refused at the start; those of generators never are."""

import base64
import os
import secrets
import string
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app import BASE_DIR
from app.errors import ConfigurationError
from app.security import weak_keys
from app.settings import Settings
from tests.support import programs

PUBLISHED = (BASE_DIR / "tests" / "data" / "published_keys.txt").read_text(encoding="utf-8").splitlines()
COMMAND = "python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"
LETTERS = string.ascii_letters + string.digits


# Of millions of random keys those whose separators part them into something like words.
ODD = (
    "h!tkjx=!+ud@jj-vvezxc%o$ggglsqxxa(*&yh+&dea^-oqz$s",
    "q()mrflx*uvpkbapy(fa@hnlbe+stx(=+%l=hczkpiwqyh((-2",
    "%5>Pccfs\\\\Xp:)0(#{`(][>`{uob)Bqb",
)


class Source:
    """Random bytes, and what is made of them."""

    token_bytes = staticmethod(secrets.token_bytes)

    def uuid(self) -> str:
        return str(uuid.uuid4())

    def text(self, characters: str, length: int) -> str:
        return "".join(secrets.choice(characters) for _ in range(length))


GENERATORS: dict[str, Callable[[Source], str]] = {
    "openssl rand -hex": lambda source: source.token_bytes(32).hex(),
    "128 bits": lambda source: source.token_bytes(16).hex(),
    "upper case": lambda source: source.token_bytes(32).hex().upper(),
    "openssl rand -base64": lambda source: base64.b64encode(source.token_bytes(32)).decode(),
    "token_urlsafe": lambda source: base64.urlsafe_b64encode(source.token_bytes(48)).decode().rstrip("="),
    "the shortest token_urlsafe": lambda source: base64.urlsafe_b64encode(source.token_bytes(24)).decode(),
    "base32": lambda source: base64.b32encode(source.token_bytes(20)).decode(),
    "base85": lambda source: base64.b85encode(source.token_bytes(32)).decode(),
    "a UUID": lambda source: source.uuid(),
    "two UUIDs": lambda source: source.uuid() + source.uuid(),
    "letters and digits": lambda source: source.text(LETTERS, 32),
    "lower case and digits": lambda source: source.text(string.ascii_lowercase + string.digits, 40),
    "all that can be typed": lambda source: source.text(LETTERS + string.punctuation, 32),
    "Django's": lambda source: source.text(string.ascii_lowercase + string.digits + "!@#$%^&*(-_=+)", 50),
    "base64 of hexadecimal": lambda source: base64.b64encode(source.token_bytes(32).hex().encode()).decode(),
}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.machine
@pytest.mark.sampled(4)
def test_random_keys_of_every_usual_form_are_accepted(name: str) -> None:
    make, source = GENERATORS[name], Source()
    refused = {
        key: reason
        for key in (make(source) for _ in range(4_000 if os.environ.get("LONG") else 500))
        if (reason := weak_keys.weakness(key))
    }
    assert refused == {}


@pytest.mark.parametrize("key", ODD)
def test_random_keys_that_look_odd_are_accepted(key: str) -> None:
    assert weak_keys.weakness(key) is None


@pytest.mark.parametrize("key", PUBLISHED)
def test_a_published_or_invented_key_is_refused(key: str) -> None:
    reason = weak_keys.weakness(key)
    assert reason is not None
    assert key not in reason
    assert weak_keys.weakness(f" {key} ")


def test_there_are_enough_published_keys_to_tell() -> None:
    assert len(set(PUBLISHED)) >= 50


@given(st.text(string.printable, min_size=1, max_size=12), st.integers(3, 40))
@example("a", 32)
def test_what_repeats_itself_is_refused(part: str, times: int) -> None:
    key = part * times
    assert weak_keys.weakness(key) or len(key.strip()) < 32


@given(st.text())
def test_no_text_breaks_it(key: str) -> None:
    weak_keys.weakness(key)


def test_a_weak_key_is_refused_wherever_it_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weak, good = "your-secret-key-change-this-in-production", secrets.token_urlsafe(48)
    for name, value in (("SECRET_KEY", weak), ("PREVIOUS_SECRET_KEYS", f"{good},{weak}")):
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigurationError) as refusal:
            Settings.load()
        monkeypatch.delenv(name)
        assert str(refusal.value).startswith(name)
        assert COMMAND in str(refusal.value)
        assert weak not in str(refusal.value)
    path = tmp_path / "secret.key"
    path.write_text(f"{weak}\n", encoding="ascii")
    monkeypatch.setattr("app.settings.SECRET_KEY_FILE", path)
    with pytest.raises(ConfigurationError) as refusal:
        Settings.load().signing_key()
    assert str(path) in str(refusal.value)
    assert COMMAND in str(refusal.value)
    assert weak not in str(refusal.value)


@pytest.mark.long
def test_the_server_does_not_start_with_a_weak_key(tmp_path: Path) -> None:
    project = programs.install(tmp_path / "project")
    key = "your-secret-key-change-this-in-production"
    ended = programs.run([project / "main.py"], tmp_path, {"SECRET_KEY": key})
    assert (ended.code, ended.out) == (2, "")
    [line] = ended.err.splitlines()
    assert line.startswith("foundation-be: SECRET_KEY: ")
    assert COMMAND in line
    assert key not in line
    assert not (project / "app.db").exists()
