"""Usernames: how they are written, and which ones are too much alike."""

import unicodedata

MAX_LENGTH = 64


def normalize(text: str) -> str:
    """The one way to write a name that can be typed in several: Unicode's NFKC."""
    return unicodedata.normalize("NFKC", text)


def key(text: str) -> str:
    """What is the same for names that differ in nothing but case and the way they are typed."""
    return normalize(normalize(text).casefold())
