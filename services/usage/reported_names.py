"""Map the names under which services report token counts."""

import functools
import re
from collections.abc import Mapping

_MAX_LENGTH = 40


def plain(name: str) -> str:
    """Return a name in lower case, without punctuation."""
    return _plain(name[:_MAX_LENGTH])


@functools.lru_cache(1024)
def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


# Names as `plain` returns them, so that `prompt_tokens` and `promptTokens` are the same.
_NAMES = {
    "prompt": ("prompttokens", "inputtokens", "prompttokencount", "inputtokencount", "promptevalcount"),
    "completion": (
        "completiontokens",
        "outputtokens",
        "completiontokencount",
        "candidatestokencount",
        "outputtokencount",
        "responsetokencount",
        "evalcount",
    ),
    "total": ("totaltokens", "totaltokencount"),
    "cached": (
        "cachedtokens",
        "cachedinputtokens",
        "cachedprompttokens",
        "promptcachehittokens",
        "cachehittokens",
        "cachereadtokens",
        "cachedcontenttokencount",
        "numcachedtokens",
    ),
    "cached_beside": ("cachereadinputtokens",),
    "written": ("cachewritetokens", "cachecreationtokens"),
    "written_beside": ("cachecreationinputtokens", "cachewriteinputtokens"),
    "reasoning": ("reasoningtokens", "thinkingtokens", "thoughtstokencount"),
    "tools": ("tooluseprompttokencount",),
}
_PROMPT_NAMES = {
    "cached": ("cachedtokens", "cachereadtokens", "cachereadinputtokens", "cacheread", "cachehittokens"),
    "written": (
        "cachewritetokens",
        "cachedwritetokens",
        "cachecreationtokens",
        "cachedcreationtokens",
        "cachecreationinputtokens",
        "cachewriteinputtokens",
        "cachecreation",
        "cachewrite",
    ),
    "input_audio_tokens": ("audiotokens", "audio"),
    "input_image_tokens": ("imagetokens", "image"),
    "input_video_tokens": ("videotokens", "video"),
}
_CACHED_NAMES = {
    "cache_audio_read_tokens": ("audiotokens", "audio"),
    "cache_image_read_tokens": ("imagetokens", "image"),
    "cache_video_read_tokens": ("videotokens", "video"),
}
_COMPLETION_NAMES = {
    "reasoning": ("reasoningtokens", "thinkingtokens", "reasoning"),
    "output_audio_tokens": ("audiotokens", "audio"),
    "output_image_tokens": ("imagetokens", "image"),
    "output_video_tokens": ("videotokens", "video"),
}
_WRITTEN_NAMES = {
    "cache_write_5m_tokens": ("ephemeral5minputtokens", "cachecreation5minputtokens", "claudecachecreation5mtokens"),
    "cache_write_1h_tokens": ("ephemeral1hinputtokens", "cachecreation1hinputtokens", "claudecachecreation1htokens"),
}

# Cohere reports billed counts beside the tokens that its model saw; Amazon reports its counts under a separate name.
_PLACES = ("billedunits", "amazonbedrockinvocationmetrics")
# Gateways report beside an answer's usage that of the session, of a period, or of the account and its limits.
_OF_MORE = re.compile(
    r"session|conversation|thread|lifetime|hour|day|daily|week|month|year|account(?!ing)|quota|limit|budget|credit|balance"
)


def is_place(key: str) -> bool:
    """Return whether an object below this key is a report of usage."""
    name = plain(key)
    return "usage" in name or name in _PLACES


def is_of_more(key: str) -> bool:
    """Return whether an object below this key counts more than one answer."""
    return _OF_MORE.search(plain(key)) is not None


def _by_name(names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: field for field, all_names in names.items() for name in all_names}


FIELDS = _by_name(_NAMES | _WRITTEN_NAMES)
PARTS = {
    **dict.fromkeys(
        ("prompttokensdetails", "inputtokensdetails", "prompttokendetails", "inputtokendetails"),
        _by_name(_PROMPT_NAMES),
    ),
    **dict.fromkeys(
        ("completiontokensdetails", "outputtokensdetails", "completiontokendetails", "outputtokendetails"),
        _by_name(_COMPLETION_NAMES),
    ),
    **dict.fromkeys(("cachecreation", "cachecreationtokendetails"), _by_name(_WRITTEN_NAMES)),
    "cachedtokensdetails": _by_name(_CACHED_NAMES),
}
INNER = ("cachecreation", "cachecreationtokendetails", "cachedtokensdetails")
"""The parts that services also report inside of other parts."""
CACHED_KINDS = dict(zip(("input_audio_tokens", "input_image_tokens", "input_video_tokens"), _CACHED_NAMES, strict=True))
"""For each kind of input the count of its cached tokens."""

DURATIONS = tuple(_WRITTEN_NAMES)
"""The counts of tokens written to a cache, by how long the cache keeps the tokens."""
