"""Warn of ignored names in the environment and in `.env`.

Each warning names the probable setting. No warning contains a value, which may be a secret.
"""

import difflib
import functools
import logging
import os
from collections.abc import Iterator, Mapping

from dotenv import dotenv_values

from app.settings import Settings

logger = logging.getLogger(__name__)

OF_MODELS = {
    "OPENAI_API_KEY": "LLM_API_KEY",
    "OPENAI_BASE_URL": "LLM_BASE_URL",
    "OPENAI_API_BASE": "LLM_BASE_URL",
    "OPENAI_MODEL": "LLM_MODEL",
    "OPENROUTER_API_KEY": "LLM_API_KEY",
    "OPENROUTER_BASE_URL": "LLM_BASE_URL",
    "OPENROUTER_MODEL": "LLM_MODEL",
    "ANTHROPIC_API_KEY": "LLM_API_KEY",
}
"""Names that other software uses for an upstream, and the corresponding settings."""

_OLD = {
    "JWT_SECRET_KEY": "SECRET_KEY",
    "JWT_SECRET": "SECRET_KEY",
    "ALLOWED_ORIGINS": "CORS_ORIGINS",
    "CORS_ALLOWED_ORIGINS": "CORS_ORIGINS",
    "CORS_ALLOW_ORIGINS": "CORS_ORIGINS",
    "BACKEND_CORS_ORIGINS": "CORS_ORIGINS",
    "DB_URL": "DATABASE_URL",
    "SQLALCHEMY_DATABASE_URL": "DATABASE_URL",
    "SQLALCHEMY_DATABASE_URI": "DATABASE_URL",
}
_NEVER_SET = {
    "ALGORITHM": "tokens are always signed with HS256",
    "JWT_ALGORITHM": "tokens are always signed with HS256",
}
# Prefixes of names that Compose and its PostgreSQL read from the same file.
_OF_COMPOSE = ("COMPOSE_", "POSTGRES_")

# Similarity of two names, from 0 to 1. It is higher for the process, whose names may belong to any program.
_NEAR = 0.75
_NEAR_IN_PROCESS = 0.9
_MIN_LENGTH_IN_PROCESS = 8


def log_misread(settings: Settings) -> None:
    """Log each misread name, and one line about unknown names."""
    for line in misread(settings, os.environ):
        logger.warning(line)
    if (others := foreign()) is not None:
        logger.info(others)


def misread(settings: Settings, environment: Mapping[str, str]) -> list[str]:
    """Return a line for each old or misspelt name."""
    return [*_misread_in_file(settings), *_misread_in_process(settings, environment)]


def no_model(settings: Settings, environment: Mapping[str, str]) -> list[str]:
    """Return warnings about a missing model and other software's names."""
    there = sorted(OF_MODELS.keys() & {*_names_in_file(), *(name for name, value in environment.items() if value)})
    if settings.llm_base_url:
        keyless = not settings.llm_api_key.get_secret_value()
        return [_replaced(name, OF_MODELS[name]) for name in there if keyless and "KEY" in name]
    offline = "no model is configured, the built-in offline model answers: set LLM_BASE_URL, LLM_API_KEY and LLM_MODEL"
    return [offline, *(_replaced(name, OF_MODELS[name]) for name in there)]


def foreign() -> str | None:
    """Return one line about the unknown names in `.env`, or None."""
    known = {*_settings(), *OF_MODELS, *_OLD, *_NEVER_SET}
    names = [name for name in _names_in_file() if name not in known and not name.startswith(_OF_COMPOSE)]
    others = sorted(name for name in names if _nearest(name, _NEAR) is None)
    return f"names in .env that are no settings: {', '.join(others)}" if others else None


def _misread_in_file(settings: Settings) -> Iterator[str]:
    missing = _missing(settings)
    for name in sorted(_names_in_file()):
        if name in _NEVER_SET:
            yield f"{name} in .env is not read: {_NEVER_SET[name]}"
        elif name in _OLD:
            if _OLD[name] in missing:
                yield _replaced(name, _OLD[name])
        elif name not in _settings() and name not in OF_MODELS and (meant := _nearest(name, _NEAR)):
            yield f"{name} in .env is no setting and is not read: is {meant} meant?"


def _misread_in_process(settings: Settings, environment: Mapping[str, str]) -> Iterator[str]:
    missing, in_file = _missing(settings), _names_in_file()
    for name in sorted({name.upper() for name, value in environment.items() if value} - _settings() - in_file):
        if name in _OLD:
            if _OLD[name] in missing:
                yield _replaced(name, _OLD[name])
        elif len(name) >= _MIN_LENGTH_IN_PROCESS and _nearest(name, _NEAR_IN_PROCESS) in missing:
            yield f"{name} is no setting and is not read: is {_nearest(name, _NEAR_IN_PROCESS)} meant?"


def _replaced(name: str, by: str) -> str:
    return f"{name} is set and is not read: set {by} instead"


def _nearest(name: str, likeness: float) -> str | None:
    return next(iter(difflib.get_close_matches(name, _settings(), 1, likeness)), None)


def _missing(settings: Settings) -> frozenset[str]:
    return _settings() - {name.upper() for name in settings.model_fields_set}


@functools.cache
def _settings() -> frozenset[str]:
    return frozenset(name.upper() for name in Settings.model_fields)


def _names_in_file() -> set[str]:
    path = Settings.model_config.get("env_file")
    if path is None:
        return set()
    return {name.upper() for name, value in dotenv_values(str(path), interpolate=False).items() if value}
