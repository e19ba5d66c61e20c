"""Complete `/openapi.json` with facts that FastAPI cannot derive."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from routers.chat_stream import ChatEvent
from routers.http.problems import Problem

VERSION = "3.2.0"
"""The first version of OpenAPI that describes streams of events."""

_SCHEMA_REFERENCE = "#/components/schemas/{model}"
_REQUEST_ID = "X-Request-ID"
_HEADERS = {
    _REQUEST_ID: {
        "description": "The request's id in the server's log: the caller's own `X-Request-ID`, or a new one.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds to wait before the next attempt; left out if waiting does not help.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "WWW-Authenticate": {
        "description": "`Bearer`: send a token as `Authorization: Bearer …`.",
        "required": True,
        "schema": {"type": "string"},
    },
}


def operation_id(route: APIRoute) -> str:
    """Name an operation after its function."""
    return route.name


def install(app: FastAPI) -> None:
    """Complete the description of this application whenever FastAPI derives it."""
    derive = app.openapi
    completed: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        nonlocal completed
        if (derived := derive()) is not completed:
            _complete(derived)
            completed = derived
        return completed

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _complete(description: dict[str, Any]) -> None:
    components = description.setdefault("components", {})
    _, more = models_json_schema(
        [(Problem, "validation"), (ChatEvent, "serialization")], ref_template=_SCHEMA_REFERENCE
    )
    schemas = jsonable_encoder(more["$defs"], exclude_none=True) | components.get("schemas", {})
    components["schemas"] = schemas
    components["headers"] = _HEADERS
    for operation in _operations(description):
        operation["summary"] = operation["operationId"].replace("_", " ").capitalize()
        for content in operation.get("requestBody", {}).get("content", {}).values():
            _show_examples(content, schemas)
        for response in operation["responses"].values():
            response.setdefault("headers", {})[_REQUEST_ID] = {"$ref": f"#/components/headers/{_REQUEST_ID}"}


def _show_examples(content: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Copy the examples of a body's schema to where most tools look."""
    schema = schemas.get(content["schema"].get("$ref", "").rpartition("/")[2], content["schema"])
    if found := schema.get("examples"):
        content["examples"] = {f"example-{number}": {"value": example} for number, example in enumerate(found, 1)}


def _operations(description: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in description["paths"].values():
        yield from methods.values()
