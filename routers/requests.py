"""Reading request bodies exactly: numbers in JSON become decimals, never floats, and odd JSON is a clear error."""

import json
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Annotated, Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import AfterValidator


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
    """A route that hands its handler an `ExactRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_exactly(request: Request) -> Response:
            return await handle(ExactRequest(request.scope, request.receive))

        return handle_exactly


def _storable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("it must not contain a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("it must not contain half a surrogate pair") from None
    return value


StorableText = Annotated[str, AfterValidator(_storable)]
"""Text that every database takes."""
