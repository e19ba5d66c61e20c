"""Reduce a model's name: strip regions, paths, variants and dates."""

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_NAME = 255
FREE = ":free"

_MAX_PARTS = 8
_KEPT_NAMES = 4096
_BEDROCK_VENDORS = (
    "anthropic|amazon|meta|mistral|cohere|ai21|deepseek|openai|qwen|writer|minimax|moonshot|google|nvidia|zai"
)

_ON_BEDROCK = re.compile(rf"^(?:[a-z]{{2,6}}(?:-gov)?\.)?(?:{_BEDROCK_VENDORS})\.")
_BEDROCK_VERSION = re.compile(r"-v\d+(?::\d+\w?)?$")

# Suffixes of a name: `:thinking`, `-20250929`, `-latest`.
_AROUND = (
    re.compile(r":[a-z]+$"),
    re.compile(r"[-@]20\d\d-?[01]\d-?[0-3]\d$"),
    re.compile(r"[-@](?:latest|default)$"),
)

# Models that only their vendors and resellers serve: their weights are not published.
_CLOSED = re.compile(
    r"(gpt-(?!oss|j-|neo)|chatgpt|o[134](-|$)|text-embedding-|claude|gemini-|grok-(?!1(-|$))|deepseek-(chat|reasoner)$|sonar"
    r"|nova-|qwen\d?-?(max|plus|turbo)|moonshot-v1|kimi-latest|glm-4-|mistral-medium|pixtral-large)"
)


# Sellers of models that others make: a name with one of them in its path is served there.
_SELLERS = frozenset(
    {
        *("aws", "azure", "azure_ai", "bedrock", "cerebras", "deepinfra", "fireworks", "fireworks_ai", "groq"),
        *("openrouter", "perplexity", "sambanova", "together", "together_ai", "vertex_ai"),
    }
)


class Spelling(NamedTuple):
    """Hold a possible name of a model, and its providers, nearest first."""

    name: str
    providers: tuple[str, ...]


@functools.lru_cache(_KEPT_NAMES)
def spellings(model: str) -> tuple[Spelling, ...]:
    """Return all names of a model, from the full to the shortest.

    A name that is too long has none.
    """
    return tuple(dict.fromkeys(_spellings(model))) if len(model) <= MAX_NAME else ()


def is_closed(model: str) -> bool:
    """Return whether a vendor serves the model.

    A local service that offers it is then a gateway. Either its weights are not published, or its name says who sells
    it, as `groq/…` and `accounts/fireworks/…` do.
    """
    names = spellings(model)
    return any(_CLOSED.match(name.lower()) or not _SELLERS.isdisjoint(providers) for name, providers in names)


def is_free(model: str) -> bool:
    """Return whether the name marks a free model, as on OpenRouter."""
    return model.endswith(FREE)


def _spellings(model: str) -> Iterator[Spelling]:
    parts = model.split("/")[-_MAX_PARTS:]
    if not all(parts):
        yield Spelling(model, ())
        return
    for name, providers in _paths(parts):
        yield Spelling(name, providers)
    for name, providers in _paths(parts):
        for bare in _bare(name):
            yield Spelling(bare, providers)


def _paths(parts: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    providers = [part.lower() for part in parts[:-1]]
    if _ON_BEDROCK.match(parts[-1].lower()):
        providers.append("aws")
    nearest = tuple(dict.fromkeys(reversed(providers)))
    for start in range(len(parts)):
        yield "/".join(parts[start:]), nearest


def _bare(name: str) -> Iterator[str]:
    """Yield ever shorter names, without one more prefix or suffix each."""
    around: tuple[re.Pattern[str], ...] = _AROUND
    if _ON_BEDROCK.match(name):
        around = (_ON_BEDROCK, _BEDROCK_VERSION, *_AROUND)
    for pattern in around:
        shorter = pattern.sub("", name)
        if shorter and shorter != name:
            name = shorter
            yield name
