"""Errors as answers: RFC 9457 problem+json, from one place."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from app import database
from app.errors import DatabaseUnavailable, InvalidRequest, ProblemError

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """A problem detail (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


class InvalidRequestProblem(Problem):
    """A problem with the request's content: the errors by field."""

    errors: dict[str, list[str]] = Field(examples=[{"limit": ["Input should be less than or equal to 36"]}])


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: the problems that an operation answers with."""
    return {status: _documented(status) for status in statuses}


def _documented(status: int) -> dict[str, Any]:
    model = InvalidRequestProblem if status == HTTPStatus.UNPROCESSABLE_ENTITY else Problem
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"model": model, "description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}


def install(app: FastAPI) -> None:
    """Makes every error of this application a problem."""
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    for failure in database.FAILURES:
        app.add_exception_handler(failure, _on_database_failure)
    app.add_exception_handler(Exception, _on_exception)


def respond(
    status: int, title: str, detail: str, headers: Mapping[str, str] | None = None, **members: Any
) -> JSONResponse:
    """An answer in the form of a problem."""
    content = {"type": "about:blank", "title": title, "status": status, "detail": detail, **members}
    return JSONResponse(content, status, dict(headers or {}), media_type=MEDIA_TYPE)


async def _on_problem(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ProblemError)
    members = {"errors": error.errors} if isinstance(error, InvalidRequest) else {}
    return respond(error.status, error.title, error.detail, error.headers, **members)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors: dict[str, list[str]] = {}
    for item in error.errors():
        errors.setdefault(_field(item["loc"]), []).append(item["msg"].removeprefix("Value error, "))
    return await _on_problem(request, InvalidRequest(errors))


def _field(location: tuple[str | int, ...]) -> str:
    # The first part says where (body, query, path, header); a JSON error's second one is a position in the text.
    names = [str(part) for part in location[1:]]
    return ".".join(names) if names and not names[0].isdigit() else str(location[0])


async def _on_http_exception(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    detail = title if error.detail == title else str(error.detail)
    return respond(error.status_code, title, detail, error.headers)


async def _on_database_failure(request: Request, error: Exception) -> JSONResponse:
    logger.error("the database failed: %s", database.describe(error), exc_info=error)
    return await _on_problem(request, DatabaseUnavailable("The database is not available at the moment."))


async def _on_exception(_request: Request, error: Exception) -> JSONResponse:
    logger.error("unexpected error", exc_info=error)
    return respond(500, "Internal Server Error", "Something went wrong on our side; it was logged.")
