"""Resolve the model that a caller requests.

A request has the service's name of a model, OpenRouter's name, or one of the earlier backend's four categories.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

DEFAULT_CATEGORY = "Standard"

USUAL_MODELS = {
    "Fast": "google/gemini-2.5-flash",
    "Standard": "anthropic/claude-sonnet-4",
    "Fast Reasoning": "openai/o4-mini",
    "Reasoning": "openai/o3",
}
"""OpenRouter's names of the models in the categories of the earlier backend."""

CATEGORIES = tuple(USUAL_MODELS)
"""The earlier backend's names of its models. Conversations store the name as their `model_type`."""

_OPENROUTER = "openrouter.ai"


def resolve(model: str | None, model_id: str | None, names: Mapping[str, str], api_url: str | None) -> str | None:
    """Return the service's name of the requested model.

    Return None if the request means the default model.

    Args:
        model: the service's name of a model, or a category.
        model_id: OpenRouter's name of a model, which is used if `model` is absent.
        names: the service's names of requested models (`MODEL_NAMES`).
        api_url: the URL of the service.
    """
    requested = model or model_id
    if requested is None:
        return None
    if requested in names:
        return names[requested]
    is_known = model not in CATEGORIES if model is not None else is_openrouter(api_url)
    return requested if is_known else None


def category(model: str | None) -> str:
    """Return the category that a request names, or the default one."""
    return model if model in CATEGORIES else DEFAULT_CATEGORY


def is_openrouter(api_url: str | None) -> bool:
    """Return whether the service is OpenRouter.

    OpenRouter's model names have the form `vendor/model`.
    """
    host = urlsplit(api_url or "").hostname or ""
    return host == _OPENROUTER or host.endswith(f".{_OPENROUTER}")
