"""Read a form as a JSON object, for endpoints that accept both."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from app.errors import BlankMessage, InvalidRequest

MULTIPART, URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"

MAX_FIELDS = 20

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Form(NamedTuple):
    """The form that an endpoint accepts."""

    required: str
    """A form in which this field is blank is refused with 400."""
    files: str
    """The field of the files."""
    max_files: int
    max_file_bytes: int
    """Bytes of all files. A multipart body may be larger than a JSON body by so much."""


def accepts_forms(form: Form) -> Callable[[Endpoint], Endpoint]:
    """Let an endpoint accept forms as well as JSON."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.form = form  # type: ignore[attr-defined]
        return endpoint

    return mark


def forms_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Describe for OpenAPI that an operation accepts a form."""
    return {"requestBody": {"content": {kind: {"schema": schema} for kind in (MULTIPART, URLENCODED)}}}


def is_form(headers: Headers) -> bool:
    """Return whether a request declares a form as its body."""
    return _kind(headers) in (MULTIPART, URLENCODED)


def is_multipart(headers: Headers) -> bool:
    """Return whether a request declares a form that may have files."""
    return _kind(headers) == MULTIPART


def _kind(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


async def read(headers: Headers, body: bytes, form: Form) -> tuple[bytes, Sequence[bytes]]:
    """Return a form's texts as a JSON object, and its files.

    Empty fields are left out.

    Raises:
        InvalidRequest: the form cannot be read, has too many fields or files, the same field twice, or a file in
            another field.
        BlankMessage: the required field is blank.
    """
    files: list[bytes] = []
    try:
        if is_multipart(headers):
            pairs, files = await _multipart(headers, body, form)
        else:
            pairs = await asyncio.to_thread(_urlencoded, body)
    except (MultiPartException, ValueError, KeyError) as error:
        raise InvalidRequest({"body": [f"The form cannot be read: {_reason(error)}"]}) from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise InvalidRequest({"body": ["The form has a field twice: send each field once."]})
    if form.required in fields and not fields[form.required].strip():
        raise BlankMessage(f"The {form.required} is blank: send some text.")
    return json.dumps({name: value for name, value in fields.items() if value}).encode(), files


class _Parser(MultiPartParser):
    """Notice the end of the form, without which parts are missing."""

    has_ended = False

    def on_end(self) -> None:
        self.has_ended = True


async def _multipart(headers: Headers, body: bytes, form: Form) -> tuple[list[tuple[str, str]], list[bytes]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    limits = {"max_files": form.max_files, "max_fields": MAX_FIELDS, "max_part_size": len(body)}
    parser = _Parser(headers, stream(), **limits)
    data = await parser.parse()
    try:
        if not parser.has_ended:
            raise MultiPartException("it is cut short: its last boundary is missing.")
        texts = [(name, value) for name, value in data.multi_items() if isinstance(value, str)]
        uploads = [(name, value) for name, value in data.multi_items() if not isinstance(value, str)]
        if any(name != form.files for name, _ in uploads):
            raise MultiPartException(f"files are accepted as `{form.files}` only.")
        # A browser sends an empty file without a name where no file is chosen.
        return texts, [await upload.read() for _, upload in uploads if upload.filename or upload.size]
    finally:
        await data.close()


def _urlencoded(body: bytes) -> list[tuple[str, str]]:
    text = body.decode("ascii")
    return parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")


def _reason(error: Exception) -> str:
    if isinstance(error, MultiPartException):
        return error.message
    if isinstance(error, KeyError):
        return "its Content-Type has no boundary."
    if isinstance(error, UnicodeDecodeError):
        return "it is not percent-encoded UTF-8."
    return f"it has more than {MAX_FIELDS} fields."
