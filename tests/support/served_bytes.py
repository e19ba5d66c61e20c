"""A server that tests ask by bytes, on SQLite alone, and what it answers."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from routers.http.guard import Limits
from tests.support import raw_http
from tests.support.accounts import SECRET_KEY
from tests.support.raw_http import Answer

CHUNKED = "Transfer-Encoding: chunked"
JSON = "Content-Type: application/json"
LOGIN = json.dumps({"username": "ayu", "password": "no"}).encode()


@pytest.fixture(params=["sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """Connections do not depend on the database."""
    return str(request.param)


@pytest.fixture
def app_settings(database_url: str) -> dict[str, Any]:
    """The settings of the application under test."""
    return {"database_url": database_url, "secret_key": SECRET_KEY}


@pytest.fixture
def limits() -> Limits:
    """How many connections the server accepts; a parameter of a test's own sets others."""
    return Limits(1000, 500)


@pytest.fixture
def port(app_settings: dict[str, Any], limits: Limits) -> Iterator[int]:
    """Of a server."""
    with raw_http.served(app_settings, limits) as port:
        yield port


def problem(answer: Answer, status: int) -> str:
    """Demand a problem of this status after which the connection is closed; return its detail."""
    assert answer.status == status, answer
    assert "content-type: application/problem+json" in answer.head
    assert answer.is_closed
    told = json.loads(answer.body)
    assert told["status"] == status
    return str(told["detail"])
