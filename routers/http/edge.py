"""Wrap every request in the outermost layer, in pure ASGI.

From the outside in: the request's id and its log line, security headers, CORS, and unexpected errors. Errors are
rendered within CORS, so that pages can read them.
"""

import logging
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import metrics, request_ids
from app.errors import ProblemError
from app.settings import Settings
from routers.http import problems

logger = logging.getLogger("access")
refusals = logging.getLogger(__name__)

CLIENT_CLOSED = 499
"""The status in the log, as with nginx, if the caller hung up before the response."""

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Headers of every response that does not set them itself."""


MAX_ORIGINS = 100
"""Refused origins that are logged, each once: the caller chooses the text."""

_FRONTEND = (
    "/auth/",
    "/chat/",
    "/conversations/",
    "/feedback/",
    "/messages/",
    "/models/",
    "/preferences/",
    "/user-model-categories/",
)


class Edge:
    """Wrap the application."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._origins = settings.cors_origins
        self._reported: set[str] = set()
        self._app = self._within_cors(app)
        hsts = ((b"strict-transport-security", b"max-age=%d" % settings.hsts_seconds),)
        self._headers = _HEADERS + (hsts if settings.hsts_seconds else ())

    def _within_cors(self, app: ASGIApp) -> ASGIApp:
        if not self._origins:
            return app
        return _Origins(
            app,
            allow_origins=self._origins,
            allow_credentials="*" not in self._origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Content-Disposition", "Retry-After", "WWW-Authenticate", "X-Request-ID"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._report_origin(Headers(scope=scope))
        exchange = _Exchange(_without_range(_without_trailing_slash(scope)), receive, send, self._headers)
        token = request_ids.current.set(exchange.request_id)
        try:
            await self._answer(exchange)
        finally:
            exchange.finish()
            request_ids.current.reset(token)

    def _report_origin(self, headers: Headers) -> None:
        """Log an origin of pages that cannot read responses."""
        origin = headers.get("origin", "")
        is_own = origin.partition("://")[2] == headers.get("host")
        if not origin or is_own or origin in self._reported or not {origin, "*"}.isdisjoint(self._origins):
            return
        if len(self._reported) < MAX_ORIGINS:
            self._reported.add(origin)
            refusals.warning("pages of %.100r are refused: to allow them, add their origin to CORS_ORIGINS", origin)

    async def _answer(self, exchange: "_Exchange") -> None:
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except Exception as error:
            if (
                exchange.status is not None
            ):  # too late for another response: the server logs the error, and interrupts this response
                raise
            answer = self._within_cors(problems.answer(problems.as_problem(error)))
            await answer(exchange.scope, exchange.receive, exchange.send)


def _without_range(scope: Scope) -> Scope:
    """Ask for a whole file, as RFC 9110, 14.2 allows.

    Starlette's errors about ranges are no problem+json.
    """
    if any(name == b"range" for name, _ in scope["headers"]):
        return {**scope, "headers": [header for header in scope["headers"] if header[0] != b"range"]}
    return scope


def _without_trailing_slash(scope: Scope) -> Scope:
    """Route a path with a trailing slash as the path without it.

    A redirect would lose the credentials of some clients. Only below `_FRONTEND`: an operator who blocks `/metrics` at
    a proxy must block all of it.
    """
    path: str = scope["path"]
    has_slash = path.endswith("/") and scope.get("raw_path", b"").partition(b"?")[0].endswith(b"/")
    return {**scope, "path": path[:-1]} if has_slash and path.startswith(_FRONTEND) else scope


class _Exchange:
    """Follow one request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        self.scope = scope
        self.status: int | None = None
        self._receive = receive
        self._send = send
        self._headers = headers
        self._began = time.perf_counter()
        self._has_caller_left = False
        self.request_id = request_ids.chosen(dict(scope["headers"]).get(b"x-request-id"))

    async def receive(self) -> Message:
        """Return the next part of the body."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and self.status is None:
            self._has_caller_left = True
        return message

    async def send(self, message: Message) -> None:
        """Send the next part of the response, the first with common headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message["headers"] = list(message.get("headers", ()))
            there = {name for name, _ in headers}
            headers.extend(header for header in self._headers if header[0] not in there)
            headers.append((b"x-request-id", self.request_id.encode()))
        await self._send(message)

    def finish(self) -> None:
        """Count and log the request, without secrets: query, headers, body."""
        scope, method = self.scope, self.scope["method"]
        seconds = time.perf_counter() - self._began
        status = CLIENT_CLOSED if self._has_caller_left or self.status is None else self.status
        metrics.answered(method, getattr(scope.get("route"), "path", "none"), status, seconds)
        if not logger.isEnabledFor(logging.INFO):
            return
        path = scope.get("raw_path", b"").partition(b"?")[0].decode("latin-1")
        facts: dict[str, Any] = {"method": method, "path": path, "status": status}
        facts |= {"duration_ms": round(1000 * seconds, 1), "client": (scope.get("client") or ("unknown",))[0]}
        logger.info("%s %s %d in %.1f ms", method, path, status, facts["duration_ms"], extra=facts)


class _Origins(CORSMiddleware):
    """Render the refusals of Starlette's CORS as problems."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        problem = ProblemError(f"{bytes(answer.body).decode()}.")
        problem.status, problem.title = answer.status_code, "Bad Request"
        refusal = problems.answer(problem)
        refusal.headers.update({name: value for name, value in answer.headers.items() if name not in refusal.headers})
        return refusal
