"""What the product makes for each application and each database, and the tests make once in a process.

Each test starts an application or opens a database of its own. Half of the processor time of a short test was needed
to make the same objects again: compiled SQL, routes as FastAPI includes them, the settings of an empty environment, and
the versions of packages. Most of the rest was needed to hash passwords: their hashes are cheap here, but in tests that
use `real_hashes`.
"""

import functools
import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from fastapi import routing
from passlib.context import CryptContext
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from sqlalchemy import Select
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import LRUCache

from app.db import engines, single_reads
from app.db.urls import Target
from app.security import passwords
from app.settings import Settings

_create_engine = engines.create
_compile_query = single_reads.Query.of
_include = routing._EffectiveRouteContext.from_api_route
_REAL = {name: getattr(passwords, name) for name in ("_context", "_earlier_context", "_unknown_users_hash")}


def install() -> None:
    """Share what does not depend on the application or the database."""
    engines.create = create_engine
    single_reads.Query.of = _query_of  # type: ignore[method-assign]
    routing._EffectiveRouteContext.from_api_route = _included  # type: ignore[method-assign]
    importlib.metadata.version = functools.cache(importlib.metadata.version)
    cheap = _REAL["_context"].copy(argon2__memory_cost=8, argon2__time_cost=1)
    passwords._context = cheap
    passwords._earlier_context = CryptContext(schemes=["bcrypt"], bcrypt__rounds=4)
    passwords._unknown_users_hash = cheap.hash("a password that no user has")


@pytest.fixture
def real_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash passwords as the product does."""
    for name, value in _REAL.items():
        monkeypatch.setattr(passwords, name, value)


def settings(**values: Any) -> Settings:
    """Return checked settings as in an empty environment, which is not searched."""
    return _Alone.load(**values)


@pytest.fixture
def compiled_again() -> Iterator[None]:
    """Compile every statement again, for a test that replaces a part of how SQLAlchemy reads or writes values."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    _queries.clear()
    for key in list(_statements):
        del _statements[key]


class _Alone(Settings):
    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_others: Any, **_named: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


class _Statements(LRUCache[Any, Any]):
    """Compiled statements by the kind of dialect; SQLAlchemy's own cache ends with its engine."""

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the statement as any engine has compiled it."""
        dialect, *statement = key
        return super().get((*_kind(dialect), *statement), default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        dialect, *statement = key
        super().__setitem__((*_kind(dialect), *statement), compiled)


def _kind(dialect: Dialect) -> tuple[object, ...]:
    return type(dialect), dialect.server_version_info


_statements = _Statements(2_000)
_queries: dict[Any, single_reads.Query] = {}


def create_engine(target: Target, pragmas: Mapping[str, int], server_settings: dict[str, str]) -> AsyncEngine:
    """Return the product's engine, which knows the statements that other engines have compiled."""
    engine = _create_engine(target, pragmas, server_settings)
    engine.sync_engine.update_execution_options(compiled_cache=_statements)
    return engine


def _query_of(statement: Select[*tuple[Any, ...]], dialect: Dialect) -> single_reads.Query:
    key = statement, *_kind(dialect)
    if key not in _queries:
        _queries[key] = _compile_query(statement, dialect)
    return _queries[key]


_routes: dict[int, tuple[routing.APIRoute, routing._EffectiveRouteContext]] = {}


def _included(
    *, original_route: routing.APIRoute, include_context: routing._RouterIncludeContext
) -> routing._EffectiveRouteContext:
    """Return the route as the first application included it: all include it in the same way."""
    key = id(original_route)  # cannot be used again, since the route is kept
    if key not in _routes:
        included = _include(original_route=original_route, include_context=include_context)
        _routes[key] = original_route, included
    return _routes[key][1]
