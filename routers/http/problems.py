"""Render errors as RFC 9457 problem+json."""

import itertools
import json
import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.exceptions import HTTPException
from starlette.routing import Match
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.db import failures
from app.errors import DatabaseUnavailable, InvalidRequest, OutOfMemory, ProblemError, is_out_of_memory

logger = logging.getLogger(__name__)

_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
MAX_ERRORS = 100
"""The most errors that are listed for one request."""
MAX_NAME = 100
"""Characters of each part of a field's name."""
MAX_MESSAGE = 300
"""Characters of each error."""
MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """A problem detail (RFC 9457), also in the earlier backend's names."""

    type: str = Field(examples=["about:blank"])
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(description="What happened, for a person.", examples=["The request is not valid."])
    message: str = Field(description="The same as `detail`.", examples=["The request is not valid."])
    error: str = Field(description="The same as `title`.", examples=["Unprocessable Content"])
    errors: dict[str, list[str]] | SkipJsonSchema[None] = Field(
        None,
        description="With status 422: what is wrong, by field.",
        examples=[{"password": ["String should have at least 8 characters"]}],
    )


_SCHEMA = {"$ref": f"#/components/schemas/{Problem.__name__}"}
_HEADERS = {401: "WWW-Authenticate", 409: "Retry-After", 429: "Retry-After", 503: "Retry-After"}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the problems of an operation for OpenAPI."""
    return {status: _documented(status) for status in statuses}


def _documented(status: int) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": _SCHEMA}},
    }
    if name := _HEADERS.get(status):
        described["headers"] = {name: {"$ref": f"#/components/headers/{name}"}}
    return described


def install(app: FastAPI) -> None:
    """Render every error of this application as a problem."""
    for kind in (ProblemError, RequestValidationError, HTTPException, *failures.FAILURES, Exception):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> JSONResponse:
    problem = as_problem(error)
    if problem.status == HTTPStatus.METHOD_NOT_ALLOWED:
        problem.headers = {"Allow": ", ".join(_allowed(request))}
    return answer(problem)


def _allowed(request: Request) -> list[str]:
    """Return the methods of all routes at this path, not of one."""
    scope = {"type": "http", "path": request.scope["path"], "root_path": request.scope.get("root_path", "")}
    scopes = [{**scope, "method": method, "headers": []} for method in _METHODS]
    routes = request.app.routes
    return [one["method"] for one in scopes if any(route.matches(one)[0] == Match.FULL for route in routes)]


def answer(problem: ProblemError) -> JSONResponse:
    """Render a problem as a response."""
    return JSONResponse(content_of(problem), problem.status, dict(problem.headers), media_type=MEDIA_TYPE)


def last_response(problem: ProblemError) -> bytes:
    """Render a problem as the last response of an HTTP/1.1 connection."""
    content = json.dumps(content_of(problem)).encode()
    headers = {
        "Content-Type": MEDIA_TYPE,
        "Content-Length": str(len(content)),
        "Connection": "close",
        **problem.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[problem.status] + lines.encode() + b"\r\n" + content


def content_of(problem: ProblemError) -> dict[str, Any]:
    """Return the members of a problem, bounded in size."""
    detail, errors = problem.detail, None
    if isinstance(problem, InvalidRequest):
        errors = dict(itertools.islice(problem.errors.items(), MAX_ERRORS))
        if len(errors) < len(problem.errors):
            detail = f"{detail} Listed are the first {MAX_ERRORS} of {len(problem.errors)} fields."
    return Problem(
        type="about:blank",
        title=problem.title,
        status=problem.status,
        detail=detail,
        message=detail,
        error=problem.title,
        errors=errors,
    ).model_dump(exclude_none=True)


def as_problem(error: Exception) -> ProblemError:
    """Convert an error to a problem; log the server's errors with traceback."""
    if isinstance(error, ProblemError):
        return error
    if is_out_of_memory(error):
        logger.error("the server is out of memory: raise its limit, or send it less at once")  # a traceback takes more
        return OutOfMemory()
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return _http(error)
    if isinstance(error, failures.FAILURES) and failures.is_unavailable(error):
        logger.error("the database failed: %s", failures.describe(error), exc_info=error)
        return DatabaseUnavailable("The database is unavailable: try again later.")
    logger.error("unexpected error", exc_info=error)
    return ProblemError("The server failed, and logged the error.")


def _invalid(error: RequestValidationError) -> InvalidRequest:
    found = error.errors()
    errors: dict[str, list[str]] = {}
    for item in found[:MAX_ERRORS]:
        errors.setdefault(_field(item["loc"]), []).append(_message(item))
    if len(found) > MAX_ERRORS:
        return InvalidRequest(
            errors, f"The request is not valid. Listed are the first {MAX_ERRORS} of {len(found)} errors."
        )
    return InvalidRequest(errors)


def _field(location: tuple[str | int, ...]) -> str:
    # The first part names the place (body, query, path, header). In a JSON error the second is a position in the text.
    names = [str(part)[:MAX_NAME] for part in location[1:]]  # the name of an unknown field is the caller's text
    return ".".join(names) if names and not names[0].isdigit() else str(location[0])


def _message(item: Any) -> str:
    text: str = item["msg"].removeprefix("Value error, ")
    reason = f": {item['ctx']['error']}" if item["type"] == "json_invalid" else ""
    return f"{text}{reason}"[:MAX_MESSAGE]


def _http(error: HTTPException) -> ProblemError:
    if isinstance(error.__cause__, ProblemError):  # raised while the body was read; FastAPI wrapped it
        return error.__cause__
    if error.status_code == HTTPStatus.BAD_REQUEST:  # FastAPI's status for an unreadable body
        return InvalidRequest({"body": [str(error.detail)]})
    problem = ProblemError(str(error.detail))
    problem.status = error.status_code
    problem.title = HTTPStatus(error.status_code).phrase
    problem.headers = error.headers or {}
    return problem
