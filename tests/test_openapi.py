"""`/docs` and `/openapi.json`: every operation tells how it can fail, and fails only in such ways."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.database import Database
from tests import accounts, problems

CONTRACT = {
    ("post", "/auth/register"): {403, 409, 422, 429},
    ("post", "/auth/login"): {401, 422, 429},
    ("post", "/auth/token"): {401, 422, 429},
    ("post", "/auth/refresh"): {401, 422},
    ("post", "/auth/logout"): {401},
    ("post", "/auth/password"): {401, 422, 429},
    ("get", "/auth/me"): {401, 422},
    ("post", "/chat"): {401, 404, 422, 502},
    ("get", "/conversations"): {401, 422},
    ("get", "/conversations/{id}"): {401, 404},
    ("delete", "/conversations/{id}"): {401, 404},
    ("get", "/auth/token-stats/monthly/{year}/{month}/daily"): {401, 422},
    ("get", "/auth/token-stats/daily/{date}/conversations"): {401, 422},
    ("post", "/usage/records"): {401, 403, 409, 422},
    ("get", "/admin/users"): {401, 403, 422},
    ("post", "/admin/users/{id}/deactivate"): {401, 403, 404, 409, 422},
    ("post", "/admin/users/{id}/activate"): {401, 403, 404, 422},
    ("delete", "/admin/users/{id}"): {401, 403, 404, 409, 422},
    ("get", "/admin/usage"): {401, 403, 422},
    ("get", "/health"): set(),
    ("get", "/ready"): {503},
}
"""Each operation, and the errors that it must tell of."""


@pytest.fixture(params=["sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """What is documented does not depend on the database."""
    return str(request.param)


@pytest.fixture
async def description(client: httpx.AsyncClient) -> dict[str, Any]:
    """The OpenAPI description."""
    answer = await client.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def operations_of(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def anonymous(path: str) -> str:
    """The path with its parameters' names left out, which are nobody's business."""
    return "/".join("{}" if part.startswith("{") else part for part in path.split("/"))


def errors_of(operation: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {int(status): response for status, response in operation["responses"].items() if int(status) >= 400}


async def test_the_documentation_is_served(client: httpx.AsyncClient) -> None:
    answer = await client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "/openapi.json" in answer.text


def test_every_operation_of_the_contract_documents_its_problems(description: dict[str, Any]) -> None:
    found = {(method, anonymous(path)): operation for method, path, operation in operations_of(description)}
    for (method, path), statuses in CONTRACT.items():
        operation = found[method, anonymous(path)]
        assert statuses <= errors_of(operation).keys(), f"{method} {path}"


def test_every_error_is_documented_as_a_problem_and_as_nothing_else(description: dict[str, Any]) -> None:
    for method, path, operation in operations_of(description):
        for status, response in errors_of(operation).items():
            where = f"{method} {path} {status}"
            assert list(response["content"]) == ["application/problem+json"], where
            schema = response["content"]["application/problem+json"]["schema"]
            if "$ref" in schema:
                schema = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            members = {"type", "title", "status", "detail"} | ({"errors"} if status == 422 else set())
            assert set(schema["properties"]) == members, where
    assert "HTTPValidationError" not in json.dumps(description)


def test_every_operation_that_can_be_refused_says_so(description: dict[str, Any]) -> None:
    for method, path, operation in operations_of(description):
        documented = errors_of(operation)
        if "security" in operation:
            assert 401 in documented, f"{method} {path}"
        if "parameters" in operation or "requestBody" in operation:
            assert 422 in documented, f"{method} {path}"
        assert operation["summary"], f"{method} {path}"


async def test_what_is_answered_is_what_is_documented(
    client: httpx.AsyncClient, database: Database, description: dict[str, Any]
) -> None:
    ayu = await accounts.add(database, "ayu")
    bodies: list[dict[str, Any] | None] = [None, {}, {"records": [{}]}, {"message": ""}]
    for method, path, operation in operations_of(description):
        concrete = path.replace("{year}", "2024").replace("{month}", "13")
        concrete = "/".join("no-such-thing" if part.startswith("{") else part for part in concrete.split("/"))
        for headers in ({}, ayu.headers):
            for body in bodies:
                answer = await client.request(method, concrete, headers=headers, json=body)
                assert str(answer.status_code) in operation["responses"], f"{method} {path}: {answer.text}"
                if answer.status_code >= 400:
                    problems.check(answer, answer.status_code)
        if "security" in operation:
            problems.check(await client.request(method, concrete), 401)


def test_the_authorize_button_knows_where_to_log_in(description: dict[str, Any]) -> None:
    [scheme] = description["components"]["securitySchemes"].values()
    assert scheme["type"] == "oauth2"
    assert scheme["flows"]["password"]["tokenUrl"].endswith("auth/token")
