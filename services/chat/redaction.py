"""Redact a service's error text for the log and the caller.

The result is one bounded line without secrets and without any part of the user's message.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

MAX_WORDS = 300
_MAX_READ = 1000
_MAX_PROMPT_CHARACTERS = 400_000
"""For longer conversations, the whole text is hidden: a search would take seconds."""
_MIN_SECRET = 3
_MIN_MESSAGE_BYTES = 3
_ECHO_BYTES = 12
"""The shortest run of letters and digits, in bytes of UTF-8, that counts as an echo of the prompt."""

HIDDEN = "[hidden]"

_PATTERNS = [
    (re.compile(r"(https?://)[^/\s@]+@", re.I), r"\1"),
    (re.compile(r"(https?://[^\s?\"'<>]+)\?[^\s\"'<>]*", re.I), rf"\1?{HIDDEN}"),
    (re.compile(r"\b(bearer|basic)\s+[^\s,;\"']{3,}", re.I), rf"\1 {HIDDEN}"),
    (
        re.compile(
            r"\b((?:[a-z]+[-_ ])?(?:api)?(?:key|token|secret|password|passwd|signature)|authorization)"
            r"(\s+provided)?([\"']?\s*[:=]\s*[\"']?)(?!\[hidden)[^\s\"',;&]{3,}",
            re.I,
        ),
        rf"\1\2\3{HIDDEN}",
    ),
    (
        re.compile(
            r"\b(?:sk|pk|rk|ak|xai|gsk|hf|r8|nvapi|pplx|fw|key|ghp|gho|glpat|csk|tgp|dsk)[-_][\w.*…-]{4,}", re.I
        ),
        HIDDEN,
    ),
    (re.compile(r"\b(?:AIza|ya29\.|eyJ|AKIA|ASIA)[\w.-]{8,}"), HIDDEN),
    (re.compile(r"[^\s\"'`:=(]*(?:\*{3,}|…|\.{3,})[^\s\"'`,)]*\w"), HIDDEN),
    (re.compile(r"\b(?=[A-Za-z]*\d)[A-Za-z0-9]{32,}\b"), HIDDEN),
]
_QUOTED = re.compile(r"(?:^|(?<=\W))(['\"`\u201c\u2018«])(.{3,200}?)['\"`\u201d\u2019»](?=\W|$)")
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")


@dataclass(frozen=True)
class Redaction:
    """What to hide: keys in full, and any part of the prompts."""

    secrets: Sequence[str]
    prompts: Sequence[str]

    def clean(self, words: object, limit: int = MAX_WORDS) -> str:
        """Return one line of at most `limit` characters; empty for no words."""
        if sum(map(len, self.prompts)) > _MAX_PROMPT_CHARACTERS:
            return HIDDEN if words else ""
        text = _one_line(str(words)[:_MAX_READ])
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        text = self._without_echo(text)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"

    def _without_echo(self, text: str) -> str:
        found = _echoed(text, [*self.prompts, *self.secrets])
        pieces: list[str] = []
        position = 0
        for start, end in _ranges(found):
            pieces += [text[position:start], HIDDEN]
            position = end
        return "".join([*pieces, text[position:]])


def secrets_of(api_key: str, base_url: str) -> list[str]:
    """Return the key and the secrets in a base URL.

    These are its user, password and query.
    """
    try:
        parts = urlsplit(base_url)
        held = [parts.username, parts.password, *re.split(r"[&=]", parts.query)]
    except ValueError:
        held = []
    found = {api_key, *(part for part in held if part and len(part) > 7)}
    found |= {quote(secret, safe="") for secret in found}
    return [secret for secret in found if len(secret) >= _MIN_SECRET]


def _one_line(text: str) -> str:
    text = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)
    text = re.sub(r"\\[nrt]", " ", text)
    text = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in text)
    return " ".join(text.split())


def _squeeze(text: str) -> str:
    """Return only the letters and digits, in lower case.

    Quotes, spaces, case and escapes then make no difference.
    """
    return re.sub(r"[\W_]+", "", text.casefold())


def _echoed(text: str, prompts: Iterable[str]) -> set[int]:
    """Return the positions in a text that echo a prompt."""
    squeezed = [_squeeze(prompt).encode("utf-8", "replace") for prompt in prompts]
    haystack = b"\n".join(squeezed)
    letters = bytearray()
    owners: list[int] = []
    for position, char in enumerate(text):
        part = _squeeze(char).encode("utf-8", "replace")
        letters += part
        owners += [position] * len(part)
    found: set[int] = set()
    for start in range(len(letters) - _ECHO_BYTES + 1):
        if letters[start : start + _ECHO_BYTES] in haystack:
            found.update(range(owners[start], owners[start + _ECHO_BYTES - 1] + 1))
    for message in {prompt for prompt in squeezed if _MIN_MESSAGE_BYTES <= len(prompt) < _ECHO_BYTES}:
        found |= _whole(text, bytes(letters), owners, message)
    for quoted in _QUOTED.finditer(text):
        inner = _squeeze(quoted[2]).encode("utf-8", "replace")
        if len(inner) >= _MIN_MESSAGE_BYTES and inner in haystack:
            found.update(range(quoted.start(2), quoted.end(2)))
    return found


def _whole(text: str, letters: bytes, owners: Sequence[int], message: bytes) -> set[int]:
    """Return the positions where a short message occurs as whole words."""
    found: set[int] = set()
    start = letters.find(message)
    while start >= 0:
        first, last = owners[start], owners[start + len(message) - 1]
        if not (text[first - 1 : first].isalnum() or text[last + 1 : last + 2].isalnum()):
            found.update(range(first, last + 1))
        start = letters.find(message, start + 1)
    return found


def _ranges(positions: set[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for position in sorted(positions):
        if ranges and position <= ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], position + 1
        else:
            ranges.append((position, position + 1))
    return ranges
