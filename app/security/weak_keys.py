"""Detect signing keys that are published or can be guessed.

Length alone proves nothing: placeholders and sentences are long. Generated keys (hexadecimal, base64, UUIDs, random
letters and digits) pass: random keys practically never reach the refused share of a pattern.
"""

import base64
import binascii
import functools
import hashlib
import re

from app.security import frequency_lists

HOW_TO_MAKE_ONE = "make a good one with: python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"

# Random keys published in documentation and software: FastAPI, Flask, RFC 7515 and 7520, Spring tutorials, Airflow,
# LibreChat, Infisical, Dify, Plane, Supabase, Nhost, Directus.
_PUBLISHED = frozenset(
    {
        "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
        "192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",
        "aym1sysppbydfgzld3umj1qzkobwvmkoqq-estjqlr_t-1qs0gzh75aktmn3yj0ips4hcguutwjazzr1z9caow",
        "hjtxiz2usn5kbqfbttnwbpdmhkv8fjg-onbc6mxccyg",
        "3cfa76ef14937c1c0ea519f8fc057a80fcd04a7420f8e8bcd0a7567c272e007b",
        "46bkjoqylppoexq0ohdznilnepkff87wfwlbfzqddho=",
        "16f8c0ef4a5d391b26034086c628469d3f9f497f08163ab9b40137092f2909ef",
        "eaa5191f2914e30b9387fd84e254e4ba6fc51b4654968a9b0803b456a54b8418",
        "f34be427ebb29de8d88c107a71546019685ed8b241d8f2ed00c3df97ad2566f0",
        "f13dbc92aaaf86fa7cb0ed8ac3265f47",
        "5lrmxkkwcvocs/uerpsl7v+tx/aauai7idkgl3tsmle=",
        "sk-9f73s3ljtxvcmt3blb3ljtqtskighxvcmt3blbkfjlk7u",
        "60gp0byfz2dvffa45cxl20p1scy9xbpf6d8c5y0geejgkyp1b5",
        "upnvntn3cdxhjpq99ymc1t1aqgqpc8kfyturgbiya15blrx8etqoxz3gzv1/u2oq",
        "0f987876650b4a085e64594fae9219e7781b17506bec02489ad061fba8cb22db",
        "6116487b-cda1-52c2-b5b5-c8022c45e263",
        "255d861b-5ea1-5996-9aa3-922530ec40b1",
        "550e8400-e29b-41d4-a716-446655440000",
        "d3b07384d113edec49eaa6238ad5ff00",
    }
)
# Words of placeholders, without separators, and too long to occur in a random key by chance.
_PLACEHOLDERS = (
    *("changeme", "changethis", "changeit", "tochange", "replaceme", "replacethis", "replacewith", "fillthis"),
    *("placeholder", "insecure", "notsecure", "notsosecret", "example", "donotuse", "opensslrand", "tokenhex"),
    *("yoursecret", "yourkey", "yourown", "yourjwt", "mysecret", "supersecret", "topsecret", "verysecret"),
    *("secretkey", "jwtsecret", "secretjwt", "testsecret", "devsecret", "somesecret", "keyboardcat"),
)
_ROWS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = frozenset(
    pair for row in _ROWS for i in range(len(row) - 1) for pair in (row[i : i + 2], row[i + 1] + row[i])
)
_LEET = str.maketrans("013457@$", "oieastas")

_HEX = re.compile(r"[0-9a-fA-F-]+")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_LIKE_A_WORD = re.compile(r"[A-Z]?[a-z013457@$]{3,}|[A-Z013457@$]{4,}")
_UNSPEAKABLE = re.compile(r"[bcdfghjklmnpqrstvwxz]{5,}")
_ONE_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]{1,4}")

# Different characters in a hexadecimal key and in others. One random key of 32 characters in a million has fewer.
_MIN_DIFFERENT_HEX = 7
_MIN_DIFFERENT = 11
# Shares of a key's characters, and minimum counts; random keys stay far below.
_MAX_REPEATED = 0.33
_MAX_IN_ORDER = 0.85
_MAX_WORDS = 0.55
_MIN_LETTERS = 0.8
_MAX_SEPARATORS = 3
_MAX_REGULAR = 0.9
_MIN_OF_KIND = 0.2
_MIN_REGULAR = 30
_MIN_WORD = 4
_MAX_WORD = 16


def weakness(key: str) -> str | None:
    """Return why a key can be guessed, or None; never quote it."""
    key = key.strip()
    if key.casefold() in _PUBLISHED or _is_digest(key.casefold()):
        return "it is a published example"
    if not key.isascii():
        return "it is a text"
    reason = _pattern(key)
    if reason is None and (text := _encoded_text(key)) is not None:
        reason = "it is a text in hexadecimal" if _HEX.fullmatch(key) else _pattern(text)
    return reason


def _is_digest(key: str) -> bool:
    """Return whether a key is a plain hash of a common password.

    The hashes are MD5, SHA-1 and SHA-256, also of the empty text.
    """
    return len(key) in (32, 40, 64) and key in _digests()


@functools.cache
def _digests() -> frozenset[str]:
    makers = (hashlib.md5, hashlib.sha1, hashlib.sha256)
    texts = ("", *frequency_lists.load()["passwords"][:1_000])
    return frozenset(make(text.encode(), usedforsecurity=False).hexdigest() for text in texts for make in makers)


def _pattern(key: str) -> str | None:
    is_hex = _HEX.fullmatch(key) is not None
    plain = "".join(character for character in key.casefold() if character.isalnum())
    if len(set(key)) < (_MIN_DIFFERENT_HEX if is_hex else _MIN_DIFFERENT):
        return "it has too few different characters"
    if _repeated(key) > _MAX_REPEATED:
        return "it repeats itself"
    if _in_order(plain) > _MAX_IN_ORDER:
        return "its characters follow the alphabet or the keyboard"
    if is_hex:
        return None
    if _regular(key) > _MAX_REGULAR:
        return "its letters and digits alternate"
    if any(phrase in text for text in (plain, plain.translate(_LEET)) for phrase in _PLACEHOLDERS):
        return "it is a placeholder"
    if _is_phrase(key) or _is_made_of_words(key, _MAX_WORDS * len(plain)):
        return "it is made of words"
    return None


def _repeated(key: str) -> float:
    triples = [key[i : i + 3] for i in range(len(key) - 2)]
    return 1 - len(set(triples)) / max(len(triples), 1)


def _in_order(plain: str) -> float:
    """Return the share of characters that continue a sequence.

    Such as `abc`, `aabb`, `a1b2c3`, `qwerty`, `987`: each follows one of the two characters before.
    """
    hits = (any(_follows(plain[i], before) for before in plain[max(i - 2, 0) : i]) for i in range(1, len(plain)))
    return sum(hits) / max(len(plain) - 1, 1)


def _follows(character: str, before: str) -> bool:
    return abs(ord(character) - ord(before)) <= 1 or before + character in _NEIGHBOURS


def _regular(key: str) -> float:
    """Return the share of characters whose kinds alternate, as in `xY9kL3mN7`.

    A character counts if it has the kind of the one 2, 3 or 4 before. People invent such keys.
    """
    kinds = [0 if c.islower() else 1 if c.isupper() else 2 for c in key if c.isalnum()]
    if len(kinds) < _MIN_REGULAR or any(kinds.count(kind) < _MIN_OF_KIND * len(kinds) for kind in range(3)):
        return 0
    return max(
        sum(kinds[i] == kinds[i - lag] for i in range(lag, len(kinds))) / (len(kinds) - lag) for lag in (2, 3, 4)
    )


def _is_phrase(key: str) -> bool:
    """Return whether separators split the text into words and numbers."""
    parts = re.findall("[A-Za-z0-9]+", key)
    separators = set(re.findall("[^A-Za-z0-9]", key))
    words = [part for part in parts if part.isalpha()]
    letters, characters = sum(map(len, words)), sum(map(len, parts))
    if (
        len(words) < 3
        or len(separators) > _MAX_SEPARATORS
        or letters < 3 * len(words)
        or letters < _MIN_LETTERS * characters
    ):
        return False
    return all(_ONE_WORD.fullmatch(part) for part in parts)


def _is_made_of_words(key: str, most: float) -> bool:
    """Return whether English words and common passwords exceed this share.

    Digits count as the letters that they resemble.
    """
    runs = [
        part
        for run in _LIKE_A_WORD.findall(key)
        for part in _UNSPEAKABLE.split(run.casefold().translate(_LEET))
        if len(part) >= _MIN_WORD
    ]
    if sum(map(len, runs)) <= most:  # true for most random keys, which then do not need the list
        return False
    return sum(map(_covered, runs)) > most


def _covered(run: str) -> int:
    words = _known_words()
    best = [0] * (len(run) + 1)
    for end in range(1, len(run) + 1):
        found = [best[start] + end - start for start in range(max(end - _MAX_WORD, 0), end) if run[start:end] in words]
        best[end] = max([best[end - 1], *found])
    return best[-1]


@functools.cache
def _known_words() -> frozenset[str]:
    lists = frequency_lists.load()
    frequent = (lists[name][:10_000] for name in ("passwords", "english_wikipedia", "us_tv_and_film"))
    return frozenset(word for words in frequent for word in words if word.isalpha() and len(word) >= _MIN_WORD)


def _encoded_text(key: str) -> str | None:
    """Decode a key that is a text in hexadecimal or base64.

    Random bytes are never all printable.
    """
    try:
        if _HEX.fullmatch(key):
            decoded = bytes.fromhex(key.replace("-", ""))
        elif _BASE64.fullmatch(key):
            body = key.rstrip("=").translate(str.maketrans("-_", "+/"))
            decoded = base64.b64decode(body + "=" * (-len(body) % 4))
        else:
            return None
        text = decoded.decode("ascii")
    except (ValueError, binascii.Error):
        return None
    return text if text.isprintable() else None
