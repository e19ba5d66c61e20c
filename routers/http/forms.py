"""Read a form as a JSON object, for endpoints that accept both."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from app.errors import BlankMessage, InvalidRequest

MULTIPART, URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"

MAX_FIELDS = 20

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def accepts_forms(required: str) -> Callable[[Endpoint], Endpoint]:
    """Let an endpoint accept forms as well as JSON.

    A form with a blank `required` field is refused with 400.
    """

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.form_requires = required  # type: ignore[attr-defined]
        return endpoint

    return mark


def forms_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Describe for OpenAPI that an operation accepts a form."""
    return {"requestBody": {"content": {kind: {"schema": schema} for kind in (MULTIPART, URLENCODED)}}}


def is_form(headers: Headers) -> bool:
    """Return whether a request declares a form as its body."""
    return _kind(headers) in (MULTIPART, URLENCODED)


def _kind(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


async def as_json(headers: Headers, body: bytes, required: str) -> bytes:
    """Return a form as a JSON object of texts, without empty fields.

    Raises:
        InvalidRequest: the form cannot be read, has too many fields, the same field twice, or a file.
        BlankMessage: the required field is blank.
    """
    try:
        is_multipart = _kind(headers) == MULTIPART
        pairs = await _multipart(headers, body) if is_multipart else await asyncio.to_thread(_urlencoded, body)
    except (MultiPartException, ValueError, KeyError) as error:
        raise InvalidRequest({"body": [f"The form cannot be read: {_reason(error)}"]}) from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise InvalidRequest({"body": ["The form has a field twice: send each field once."]})
    if required in fields and not fields[required].strip():
        raise BlankMessage(f"The {required} is blank: send some text.")
    return json.dumps({name: value for name, value in fields.items() if value}).encode()


async def _multipart(headers: Headers, body: bytes) -> list[tuple[str, str]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(headers, stream(), max_files=0, max_fields=MAX_FIELDS, max_part_size=len(body))
    form = await parser.parse()
    return [(name, value) for name, value in form.multi_items() if isinstance(value, str)]


def _urlencoded(body: bytes) -> list[tuple[str, str]]:
    text = body.decode("ascii")
    return parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")


def _reason(error: Exception) -> str:
    if isinstance(error, MultiPartException):
        return "files are not accepted: leave them out." if "files" in error.message else error.message
    if isinstance(error, KeyError):
        return "its Content-Type has no boundary."
    if isinstance(error, UnicodeDecodeError):
        return "it is not percent-encoded UTF-8."
    return f"it has more than {MAX_FIELDS} fields."
