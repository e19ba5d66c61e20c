"""Which model a caller means: a name of the service, of OpenRouter, or of the earlier backend's four categories."""

from collections.abc import Mapping
from urllib.parse import urlsplit

CATEGORIES = ("Fast", "Standard", "Fast Reasoning", "Reasoning")
"""What the earlier backend called its models; conversations keep the name as their `model_type`."""

DEFAULT_CATEGORY = "Standard"

USUAL_MODELS = {
    "Fast": "google/gemini-2.5-flash",
    "Standard": "anthropic/claude-sonnet-4",
    "Fast Reasoning": "openai/o4-mini",
    "Reasoning": "openai/o3",
}
"""OpenRouter's names of the models of the categories, as the earlier backend had them."""

_OPENROUTER = "openrouter.ai"


def resolve(model: str | None, model_id: str | None, names: Mapping[str, str], api_url: str | None) -> str | None:
    """Return the service's name of the requested model; None where the default model is meant.

    Args:
        model: a name of the service, or a category.
        model_id: OpenRouter's name of a model; it counts where `model` is absent.
        names: the service's names of requested models, by the operator's choice.
        api_url: where the service is.
    """
    requested = model or model_id
    if requested is None:
        return None
    if requested in names:
        return names[requested]
    is_known = model not in CATEGORIES if model is not None else is_openrouter(api_url)
    return requested if is_known else None


def category(model: str | None) -> str:
    """Return the category that a request names, or the usual one."""
    return model if model in CATEGORIES else DEFAULT_CATEGORY


def is_openrouter(api_url: str | None) -> bool:
    """Return whether the service is OpenRouter, which sells models by `vendor/model`."""
    host = urlsplit(api_url or "").hostname or ""
    return host == _OPENROUTER or host.endswith(f".{_OPENROUTER}")
