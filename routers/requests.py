"""Reading request bodies exactly: numbers in JSON become decimals, never floats, and odd JSON is a clear error."""

import json
import re
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Annotated, Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BeforeValidator, ConfigDict, Field

from app.errors import TooLarge
from routers.problems import documented


class ExactRequest(Request):
    """A request whose JSON keeps every digit."""

    async def json(self) -> Any:
        """The body; raises `json.JSONDecodeError` for whatever cannot be read, also NaN and too deep a nesting."""
        if not hasattr(self, "_exact_json"):
            self._exact_json = _read(await self.body())
        return self._exact_json


def _read(body: bytes) -> Any:
    try:
        return json.loads(body, parse_float=Decimal, parse_constant=_refuse_constant)
    except json.JSONDecodeError:
        raise
    except (ValueError, ArithmeticError, RecursionError) as error:  # bad UTF-8, huge numbers, nesting
        raise json.JSONDecodeError(f"not readable: {type(error).__name__}", "", 0) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class ExactRoute(APIRoute):
    """A route that hands its handler an `ExactRequest`, and documents that bodies are limited."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.body_field is not None:
            self.responses = {**self.responses, **documented(TooLarge.status)}

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_exactly(request: Request) -> Response:
            return await handle(ExactRequest(request.scope, request.receive))

        return handle_exactly


def examples(*bodies: dict[str, Any]) -> ConfigDict:
    """Configure a model with bodies that succeed as they are on a new server, after those of `/auth/register`."""
    return ConfigDict(json_schema_extra={"examples": list(bodies)})


def matching(pattern: str, wanted: str) -> BeforeValidator:
    """Refuses text that is not written in just this way, which pydantic would forgive; what is no text is let through.

    Args:
        pattern: of the whole text; its digits are those of ASCII.
        wanted: what the caller is told to send instead.
    """
    compiled = re.compile(pattern, re.ASCII)

    def check(value: Any) -> Any:
        if isinstance(value, str) and compiled.fullmatch(value) is None:
            raise ValueError(f"it must be {wanted}")
        return value

    return BeforeValidator(check)


Digits = matching(r"-?\d+", "a whole number")
"""Of a number in a path or a query."""

StorableText = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""Text that every database takes: no NUL, and, as the pattern is looked for in Unicode text, no half surrogate pair."""
