"""Read bodies: credentials before content, limits before parsing, exact numbers."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from decimal import Decimal
from typing import Annotated, Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BeforeValidator, ConfigDict, Field
from starlette.requests import ClientDisconnect

from app.errors import InvalidRequest, TooLarge, UnsupportedEncoding
from routers.http import dependencies, forms, problems
from routers.http.dependencies import State
from routers.http.forms import Form
from routers.http.problems import documented
from services.accounts import api_keys, users

SMALL_BODY_BYTES = 131_072
"""The largest body of most routes: each of a password's 4,096 characters has up to 12 bytes in JSON."""

UNCHECKED_BYTES = 65_536
"""The most bytes of a body that are read before the database confirms the caller and the role."""

MAX_VALUES = 16_384
"""The most JSON values in a body above `UNCHECKED_BYTES`; 1,000 usage records with every field have 12,000."""

MAX_NUMBER_BYTES = 1_048_576
"""The most bytes outside of strings and white space in a body above `UNCHECKED_BYTES`."""

MAX_EXPONENT = 1_000
"""A number with a larger exponent is read as NaN, which every field refuses.

pydantic would make an integer of all the digits that `1e999999999` stands for.
"""

_OFF_LOOP_BYTES = 262_144
"""Bodies above this size in bytes are parsed in a thread."""

_FILES = "foundation.files"
_WHITE_SPACE = b" \t\r\n"
_ROLES: dict[Any, tuple[str, ...]] = {dependencies.caller: (), dependencies.caller_or_key: api_keys.ROLES}
"""The dependencies that identify the caller, and the roles that each requires; an empty tuple for any role."""

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class ExactRequest(Request):
    """Keep every digit of the JSON in a request."""

    async def json(self) -> Any:
        """Parse the body.

        Raises:
            json.JSONDecodeError: the body is not JSON, contains NaN, or is nested too deeply.
        """
        if not hasattr(self, "_exact_json"):
            body = await self.body()
            self._exact_json = await asyncio.to_thread(_parse, body) if len(body) > _OFF_LOOP_BYTES else _parse(body)
        return self._exact_json


def _parse(body: bytes) -> Any:
    try:
        _check_size(body)
        text = body.decode("utf-8-sig", "surrogatepass")  # RFC 8259, section 8.1: no other encoding
        hooks: dict[str, Any] = {"parse_float": _exact_number, "object_pairs_hook": _object_of}
        return json.loads(text, parse_constant=_refuse_constant, **hooks)
    except json.JSONDecodeError:
        raise
    except (ValueError, ArithmeticError, RecursionError) as error:  # bad UTF-8, huge numbers, nesting
        raise json.JSONDecodeError(f"not readable: {type(error).__name__}", "", 0) from None


def _check_size(body: bytes) -> None:
    """Refuse a body that would take long to parse.

    Parsing blocks the interpreter, also in a thread. Each step is one pass in C. Strings are cut out first, so that
    their commas and brackets do not count.
    """
    if len(body) <= UNCHECKED_BYTES:
        return
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain.count(b'"') > 4 * MAX_VALUES:  # a key and a value have at most two quotes each
        raise _too_many_values()
    structure = b"".join(plain.split(b'"')[::2]).translate(None, _WHITE_SPACE)
    if sum(structure.count(opening) for opening in (b",", b"[", b"{")) > MAX_VALUES:
        raise _too_many_values()
    if len(structure) > MAX_NUMBER_BYTES:
        raise json.JSONDecodeError(f"more than {MAX_NUMBER_BYTES} bytes outside of strings", "", 0)


def _too_many_values() -> json.JSONDecodeError:
    return json.JSONDecodeError(f"more than {MAX_VALUES} values", "", 0)


def _exact_number(digits: str) -> Decimal:
    number = Decimal(digits)
    return Decimal("NaN") if abs(number.adjusted()) > MAX_EXPONENT else number


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # RFC 8259, section 4: readers differ in which of them they use
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        shown = name[: problems.MAX_NAME].encode(errors="replace").decode()  # without lone surrogates
        raise InvalidRequest({shown: ["This field is there more than once."]})
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def largest_body(size: Callable[[State], int]) -> Callable[[Endpoint], Endpoint]:
    """Set an endpoint's largest body in bytes, instead of `SMALL_BODY_BYTES`."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.largest_body = size  # type: ignore[attr-defined]
        return endpoint

    return mark


class ExactRoute(APIRoute):
    """Check the caller, read the body within limits, pass an `ExactRequest`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.body_field is not None:
            self.responses = {**self.responses, **documented(TooLarge.status, UnsupportedEncoding.status)}

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        has_body = self.body_field is not None
        identify = next((sub.call for sub in self.dependant.dependencies if sub.call in _ROLES), None)
        limit = getattr(self.endpoint, "largest_body", lambda _: SMALL_BODY_BYTES)
        form: Form | None = getattr(self.endpoint, "form", None)

        async def handle_exactly(request: Request) -> Response:
            exact = ExactRequest(request.scope, request.receive)
            if has_body:
                state: State = request.app.state.foundation
                more = form.max_file_bytes if form and forms.is_multipart(request.headers) else 0
                exact._body = await _Body(exact, state, identify).read(limit(state) + more)
                if form is not None and forms.is_form(request.headers):
                    exact = await _from_form(exact, form)
            return await handle(exact)

        return handle_exactly


async def _from_form(request: ExactRequest, form: Form) -> ExactRequest:
    """Return the request as if its form were JSON.

    The files are in the scope.
    """
    body, files = await forms.read(request.headers, request._body, form)
    headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
    scope = {**request.scope, "headers": [*headers, (b"content-type", b"application/json")], _FILES: files}
    exact = ExactRequest(scope, request.receive)
    exact._body = body
    return exact


class _Body:
    """Read the body of a request."""

    def __init__(self, request: Request, state: State, identify: Any) -> None:
        self._request = request
        self._state = state
        self._identify = identify
        self._is_admitted = False

    async def read(self, limit: int) -> bytes:
        """Read the whole body.

        Raises:
            Unauthenticated, Forbidden: the caller is unknown or lacks the role.
            TooLarge: the body exceeds the limit.
            UnsupportedEncoding: the body is compressed.
        """
        token = await dependencies.bearer(self._request)
        claims = await self._identify(self._request, self._state, token) if self._identify else None
        self._check_encoding()
        announced = self._request.headers.get("content-length", "")
        length = int(announced[:20]) if announced.isascii() and announced.isdigit() else 0
        body = bytearray()
        try:
            await self._check(length, limit, claims)
            async for piece in self._request.stream():
                await self._check(len(body) + len(piece), limit, claims)
                body += piece
        except ClientDisconnect:
            raise InvalidRequest({"body": ["The connection ended within the body."]}) from None
        return bytes(body)

    def _check_encoding(self) -> None:
        encodings = ",".join(self._request.headers.getlist("content-encoding"))
        if any(encoding.strip().lower() not in ("", "identity") for encoding in encodings.split(",")):
            raise UnsupportedEncoding("Compressed bodies are not accepted: send the body without Content-Encoding.")

    async def _check(self, length: int, limit: int, claims: Any) -> None:
        if length > UNCHECKED_BYTES and claims is not None and not self._is_admitted:
            roles = _ROLES[self._identify]
            await self._state.database.read(lambda session: users.require_role(session, claims, *roles))
            self._is_admitted = True
        if length > limit:
            raise TooLarge(f"The body is larger than {limit} bytes.")


def files_of(request: Request) -> Sequence[bytes]:
    """Return the files of a form."""
    files: Sequence[bytes] = request.scope.get(_FILES, ())
    return files


def examples(*bodies: dict[str, Any]) -> ConfigDict:
    """Configure a model with example bodies.

    They succeed unchanged on a new server, after the example of `/auth/register`.
    """
    return ConfigDict(json_schema_extra={"examples": list(bodies)})


def matching(pattern: str, wanted: str) -> BeforeValidator:
    """Refuse text of another form, which pydantic would accept.

    Values that are not text pass.

    Args:
        pattern: matches the whole text; its digits are those of ASCII.
        wanted: the form to send, for the error.
    """
    compiled = re.compile(pattern, re.ASCII)

    def check(value: Any) -> Any:
        if isinstance(value, str) and compiled.fullmatch(value) is None:
            raise ValueError(f"it must be {wanted}")
        return value

    return BeforeValidator(check)


Digits = matching(r"-?\d+", "a whole number")
"""Digits of a number in a path or a query."""

IsoDate = matching(r"\d{4}-\d{2}-\d{2}", "a date, YYYY-MM-DD")
"""A date in a path or a query."""

StorableText = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""Text that every database accepts: without NUL and lone surrogates. Any pattern refuses the latter."""
