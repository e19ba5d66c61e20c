"""Every field of every operation is sent what databases, parsers and clocks stumble over: it is never our error."""

import json
import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from app.db.database import Database
from services.accounts import logins
from tests.support import accounts, invariants, problems
from tests.support.accounts import PASSWORD

DEEP = 5000
TEXTS = [
    "",
    "\x00",
    "a\x00b",
    "\ud800",
    "\udfff",
    "\U0010ffff",
    "\uffff",
    "\u202e",
    "a\nb",
    "%00",
    "'; --",
    "x" * 70_000,
]
NUMBERS = [2**31 - 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30, 0, -1]
ODD = [json.dumps(value) for value in [*TEXTS, *map(str, NUMBERS), *NUMBERS, None, True, [], {}, [None], {"": ""}]]
ODD += [
    "1" * 5000,
    "1e400",
    "-1e-400",
    "1e999999999",
    "NaN",
    "-Infinity",
    "1.5",
    '"NaN"',
    '"1e999999999"',
    '"Infinity"',
]
ODD += [
    "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP,
    "[" * DEEP,
    '"\\u0000"',
    '"\\ud800\\u0041"',
    "'",
    "",
]
"""As JSON, or what is meant to be it."""

IN_URLS = [
    *TEXTS[:-1],
    *map(str, NUMBERS),
    "1" * 5000,
    "1e5",
    "1.0",
    "0x1",
    "9999-12-31",
    "0000-00-00",
    "NaN",
    "..",
    "x/y",
]
RECORD = {"id": "1", "user_id": 1, "model": "m", "input_tokens": 1, "output_tokens": 1}
BODIES: dict[str, dict[str, Any]] = {
    "/auth/register": {"username": "x", "email": "x@example.com", "password": PASSWORD},
    "/auth/login": {"username": "x", "password": PASSWORD},
    "/auth/token": {"username": "x", "password": PASSWORD},
    "/chat": {"message": "Hi", "stream": False},
    "/usage/records": {"records": [RECORD]},
}
"""What an operation would take, where the schema alone does not say."""


@pytest.fixture(autouse=True)
def logins_fail_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their time is not looked at here."""
    monkeypatch.setattr(logins, "FAILED_LOGIN_SECONDS", 0.001)


@pytest.fixture
async def description(client: httpx.AsyncClient) -> dict[str, Any]:
    """The OpenAPI description."""
    found: dict[str, Any] = (await client.get("/openapi.json")).json()
    return found


def resolved(schema: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    for option in schema.get("anyOf", ()):
        if option.get("type") != "null":
            schema = option
            break
    if "$ref" in schema:
        return resolved(description["components"]["schemas"][schema["$ref"].rpartition("/")[2]], description)
    return schema


def texts_of(schema: dict[str, Any], description: dict[str, Any], valid: Any) -> Iterator[str]:
    """JSON of all that a schema describes, each time with one part of it, or all of it, being odd."""
    schema = resolved(schema, description)
    if "properties" in schema:
        known = dict(valid) if isinstance(valid, dict) else {}
        for name, inner in schema["properties"].items():
            rest = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in known.items() if key != name]
            for text in texts_of(inner, description, known.get(name)):
                yield "{" + ", ".join([*rest, f"{json.dumps(name)}: {text}"]) + "}"
    elif schema.get("type") == "array":
        for text in texts_of(schema["items"], description, valid[0] if valid else None):
            yield f"[{text}]"
    yield from ODD


def operations_of(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def check(answer: httpx.Response, operation: dict[str, Any], what: str) -> None:
    assert str(answer.status_code) in operation["responses"], f"{what[:200]}: {answer.status_code} {answer.text[:300]}"
    if answer.status_code >= 400:
        problems.check(answer, answer.status_code)


@pytest.mark.long
async def test_odd_values_in_bodies_are_never_our_error(
    client: httpx.AsyncClient, database: Database, description: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    headers = (await accounts.add(database, "service", "service")).headers
    sent = 0
    for method, path, operation in operations_of(description):
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            for text in texts_of(content["schema"], description, BODIES.get(path)):
                body = form(text) if "form" in kind else text.encode()
                answer = await client.request(method, path, headers={**headers, "Content-Type": kind}, content=body)
                check(answer, operation, f"{method} {path} {text}")
                sent += 1
    assert sent > 100 * len(BODIES)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    await invariants.check(database)


@pytest.mark.long
async def test_odd_field_names_are_client_errors_and_are_shortened(
    client: httpx.AsyncClient, database: Database, description: dict[str, Any]
) -> None:
    headers = (await accounts.add(database, "service", "service")).headers | {"Content-Type": "application/json"}
    for method, path, operation in operations_of(description):
        for name in (*TEXTS, "x" * 70_000, "__proto__", "records.0.id"):
            fields = BODIES.get(path, {}) | {name: 1}
            for body in (fields, {"records": [RECORD | {name: 1}]}):
                if "requestBody" in operation:
                    answer = await client.request(method, path, headers=headers, content=json.dumps(body).encode())
                    check(answer, operation, f"{method} {path} {name!r}")
                    assert len(answer.content) < 2000


def form(text: str) -> bytes:
    """The same as a form, where it can be."""
    try:
        fields = json.loads(text)
        return "&".join(f"{quote(name)}={quote(str(value))}" for name, value in fields.items()).encode()
    except (ValueError, AttributeError, RecursionError):
        return text.encode()


@pytest.mark.long
async def test_odd_values_in_urls_and_headers_are_never_our_error(
    client: httpx.AsyncClient, database: Database, description: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    headers = (await accounts.add(database, "ayu")).headers
    for method, path, operation in operations_of(description):
        for parameter in operation.get("parameters", []):
            for text in IN_URLS:
                url, more = sent_in(path, parameter, text)
                answer = await client.request(
                    method, url, headers=[*map(encoded, headers.items()), *more], json=BODIES.get(path)
                )
                is_another = answer.request.url.path == "/"  # httpx resolves ".."
                if not is_another and answer.status_code not in (404, 405):  # or of none
                    check(answer, operation, f"{method} {url}")
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def encoded(header: tuple[str, str]) -> tuple[bytes, bytes]:
    return header[0].encode(), header[1].encode()


def sent_in(path: str, parameter: dict[str, Any], text: str) -> tuple[str, list[tuple[bytes, bytes]]]:
    """The URL and the headers with this text in this parameter, and something plain in the others of the path."""
    name, value = parameter["name"], quote(text.encode("utf-8", "surrogatepass"), safe="")
    if parameter["in"] == "header":
        return path, [(name.encode(), text.encode("utf-8", "surrogatepass"))]
    if parameter["in"] == "path":
        return "/".join(
            value if part == f"{{{name}}}" else "1" if part.startswith("{") else part for part in path.split("/")
        ), []
    return f"{path}?{name}={value}", []
