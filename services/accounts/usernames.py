"""Normalize usernames, and refuse invisible and confusing ones."""

import re
import unicodedata

from confusable_homoglyphs import categories

MAX_LENGTH = 64

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt), and the Braille blank."""

_VISIBLE = ("L", "N", "P", "S")
"""Categories of characters that are visible on their own; marks need another character."""

_ANY_SCRIPT = {"COMMON", "INHERITED"}
_MIXTURES = (
    {"LATIN", "HAN", "HIRAGANA", "KATAKANA"},
    {"LATIN", "HAN", "BOPOMOFO"},
    {"LATIN", "HAN", "HANGUL"},
)
"""Scripts that may be mixed: Unicode Technical Standard 39, section 5.2, "Highly Restrictive"."""


def normalize(text: str) -> str:
    """Return a name in Unicode's NFKC form."""
    return unicodedata.normalize("NFKC", text)


def key(text: str) -> str:
    """Return a key that ignores the case and the Unicode form."""
    return normalize(normalize(text).casefold())


def check_new(text: str) -> str:
    """Return the normalized name of a new account.

    Names in old databases may break these rules.

    Raises:
        ValueError: readers could not see the name, or could mistake it for another one.
    """
    name = normalize(text)
    if not name.isprintable() or name != name.strip():
        raise ValueError("it must not contain control characters, nor begin or end with a space")
    if _INVISIBLE.search(name):
        raise ValueError("it must not contain invisible characters")
    if unicodedata.category(name[0]).startswith("M"):
        raise ValueError("it must not begin with a mark that belongs to another character")
    if not any(unicodedata.category(character).startswith(_VISIBLE) for character in name):
        raise ValueError("it must contain visible characters")
    scripts = {categories.alias(character) for character in name} - _ANY_SCRIPT
    if len(scripts) > 1 and not any(scripts <= mixture for mixture in _MIXTURES):
        raise ValueError(f"it must not mix the scripts {' and '.join(sorted(scripts)).title()}")
    if len(name) > MAX_LENGTH:
        raise ValueError(f"it has more than {MAX_LENGTH} characters when it is normalized")
    return name
