"""Bound heads, framing and time of connections, before HTTP is parsed.

uvicorn's protocol, the base class, has none of these bounds. `docs/decisions/0013-limits.md` lists the attacks.
"""

import asyncio
import logging
from typing import Any, NoReturn, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app import addresses, metrics
from app.errors import OutOfMemory, ProblemError, is_out_of_memory
from routers.http import guard, problems, upgrades
from routers.http.guard import Guard

logger = logging.getLogger("access")

# Bytes
HEAD_BYTES = 65_536
URL_BYTES = 8_192
LINGER_BYTES = 16 * 2**20
_PIECE = 4_096

HEAD_LINES = 200

# Seconds
HEAD_SECONDS = 15.0
BODY_SECONDS = 15.0
WRITE_SECONDS = 60.0
LINGER_SECONDS = 2.0
KEEP_ALIVE_SECONDS = 75

# Bytes per second that a body must have after its first `BODY_SECONDS`.
BODY_RATE = 4_096

_ALWAYS_ANSWERED = (b"/health", b"/ready")


class Connection(HttpToolsProtocol):
    """Bound uvicorn's protocol for one connection."""

    def __init__(self, connections: Guard, **options: Any) -> None:
        super().__init__(**options)
        self._guard = connections
        self.address = ""
        self.is_in_reserve = False
        self._deadline: float | None = None
        self._running: RequestResponseCycle | None = None
        self._is_in_body = False
        self._is_lingering = False
        self._refusal: ProblemError | None = None
        self._cause: ProblemError | None = None
        self._skips_upgrade = False
        self._held = b""
        # Bytes
        self._head = 0
        self._unproductive = 0
        self._framing = 0
        self._drained = 0
        self._unsent = 0
        self._unsent_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the connection, or refuse it."""
        super().connection_made(cast(asyncio.Transport, _Transport(transport, self)))
        trusted = getattr(self.config.loaded_app, "trusted_hosts", ())
        if self.client and self.client[0] not in trusted:
            self.address = addresses.network_of(self.client[0])
        self._unsent_since = self.loop.time()
        self._deadline = self.loop.time() + HEAD_SECONDS
        if problem := self._guard.admit(self):
            self._finish(problem)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the caller's departure to every request of the connection."""
        self._guard.release(self)
        self._is_in_body = False
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the received bytes, in pieces that are counted."""
        if self._is_lingering or self._refusal is not None:
            self._drain(len(data))
            return
        self._unset_keepalive_if_required()
        if self._deadline is None and not self._is_answering():
            self._deadline = self.loop.time() + HEAD_SECONDS
        if self._held:
            self._held += data
        else:
            self._feed(data)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _feed(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            if self.pipeline:  # the next request waits for the response to the previous one; the rest waits here
                self._held = data[start:]
                self.flow.pause_reading()
                return
            piece = data[start : start + _PIECE]
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                self._decline_upgrade()
                self._feed(data[start + upgrade.args[0] :])
                return
            except httptools.HttpParserError as error:
                self._refuse(self._cause or _unreadable(error))
                return
            self._count(len(piece))
            if self._is_lingering or self._refusal is not None:
                return

    def _count(self, received: int) -> None:
        """Bound bytes without content.

        They are heads, chunk sizes and extensions, trailers, and empty lines.
        """
        self._unproductive += received
        self._framing += received
        if self._unproductive > HEAD_BYTES + _PIECE and not self._is_in_body:
            self._refuse(_large_head())
        elif self._is_in_body and (self._unproductive > HEAD_BYTES + _PIECE or self._framing > 2 * HEAD_BYTES):
            self._refuse(guard.refusal(400, "The body has more framing than content."))

    def _decline_upgrade(self) -> None:
        """Continue with HTTP/1.1 after a declined upgrade.

        The parser treated the body as another protocol, so a new parser reads it. Java's client sends `Upgrade: h2c`
        with its first request, whatever its method.
        """
        if not self._skips_upgrade:
            return
        self._skips_upgrade = False
        self.cycle.keep_alive = False
        self.parser = upgrades.parser_of_body(self, self.headers)

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: any caller could fill the log."""

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._head = self._framing = 0

    def on_url(self, url: bytes) -> None:
        """Bound the target."""
        super().on_url(url)
        if len(self.url) > URL_BYTES:
            self._fail(guard.refusal(414, f"The target is longer than {URL_BYTES} bytes."))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Bound the head; ignore trailers, which would reach the application as headers."""
        if self._is_in_body:
            return
        self._head += len(name) + len(value) + 4
        if self._head > HEAD_BYTES or len(self.headers) >= HEAD_LINES:
            self._fail(_large_head())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the response."""
        self._check_head()
        if self.parser.should_upgrade():
            self._skips_upgrade = any(name in upgrades.FRAMING for name, _ in self.headers)
        self._unproductive = 0
        super().on_headers_complete()
        self._guard.work(self)
        self._is_in_body = True
        self._deadline = self.loop.time() + BODY_SECONDS
        if self.is_in_reserve:
            self.cycle.keep_alive = False

    def _check_head(self) -> None:
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._fail(guard.refusal(505, "This server speaks HTTP/1.1."))
        if self.parser.get_method() == b"CONNECT":
            self._fail(guard.refusal(501, "This server is not a proxy."))
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (version == "1.1" and not hosts):  # RFC 9112, section 3.2
            self._fail(guard.refusal(400, "A request has exactly one Host header."))
        if self.is_in_reserve and self.url not in _ALWAYS_ANSWERED:
            self._fail(guard.overload())

    def on_body(self, body: bytes) -> None:
        """Pass on content, which extends the body's deadline."""
        self._unproductive = 0
        self._framing -= 2 * len(body)
        if self._deadline is not None:
            self._deadline += len(body) / BODY_RATE
        if self.cycle.response_complete:
            self._drain(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request, whose response may already have been sent."""
        self._unproductive = 0
        if self._skips_upgrade:
            return
        self._is_in_body = False
        self._deadline = None
        super().on_message_complete()
        if not self._is_answering():
            self._guard.wait(self)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Continue with the next request, or with bytes that were held back."""
        is_next_there = bool(self.pipeline)
        super().on_response_complete()
        if is_next_there or self.transport.is_closing():
            return
        if self._refusal is not None:
            self._finish(self._refusal)
            return
        if not self._is_in_body:
            self._deadline = self.loop.time() + HEAD_SECONDS if self._unproductive else None
            self._guard.wait(self)
        held, self._held = self._held, b""
        if held:
            self.data_received(held)

    def check(self, now: float) -> None:
        """Close the connection if it exceeds a deadline."""
        if self._is_lingering:
            if self._deadline is None or now > self._deadline:
                self.transport.abort()
            return
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent < self._unsent:
            self._unsent_since = now
        self._unsent = unsent
        if unsent and now - self._unsent_since > WRITE_SECONDS:
            self.transport.abort()
        elif self._deadline is not None:
            self._check_deadline(now, self._deadline)

    def _check_deadline(self, now: float, deadline: float) -> None:
        if self.flow.read_paused:  # the application is slow, not the caller
            self._deadline = deadline + guard.SWEEP_SECONDS
        elif now < deadline or (self._is_answering() and not self._is_in_body):
            return
        elif self._is_in_body or self._unproductive:
            self._refuse(guard.refusal(408, "The request took too long to arrive."))
        else:
            self.transport.close()

    def _fail(self, problem: ProblemError) -> NoReturn:
        self._cause = problem
        raise problem

    def _refuse(self, problem: ProblemError) -> None:
        """Respond with a problem and close, after all pending responses."""
        self._refusal = problem
        self.flow.pause_reading()
        if self._is_answering() and self._is_in_body:  # the request itself is broken
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.pipeline:
                self.pipeline.popleft()
                return
            if self.cycle.response_started:
                self.transport.abort()
                return
        elif self._is_answering():
            return
        elif self._is_in_body:  # this request already has its response
            self.linger()
            return
        self._finish(problem)

    def _finish(self, problem: ProblemError) -> None:
        logger.info("refused a connection of %s: %d %s", self.client and self.client[0], problem.status, problem.detail)
        metrics.answered("other", "none", problem.status, 0.0)
        self.transport.write(problems.last_response(problem))
        self.linger()

    def end(self, transport: asyncio.Transport) -> None:
        """Close; within a body, let the caller read the response first."""
        if self._is_in_body and not self._is_lingering:
            self.linger()
        else:
            transport.close()

    def linger(self) -> None:
        """Close for writing, and read for a while: RFC 9112, section 9.6."""
        self._is_lingering = True
        self._deadline = self.loop.time() + LINGER_SECONDS
        self._unset_keepalive_if_required()
        self._guard.wait(self)
        self.transport.write_eof()
        self.flow.resume_reading()

    @property
    def is_lingering(self) -> bool:
        """Return whether nothing more will be written."""
        return self._is_lingering

    def _drain(self, received: int) -> None:
        self._drained += received
        if self._drained > LINGER_BYTES:
            self.transport.abort()


class _Transport:
    """Close a transport after the caller had time to read."""

    def __init__(self, transport: asyncio.BaseTransport, connection: Connection) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._connection.end(self._transport)

    def is_closing(self) -> bool:
        return self._connection.is_lingering or self._transport.is_closing()


def _unreadable(error: httptools.HttpParserError) -> ProblemError:
    if is_out_of_memory(error):
        return OutOfMemory()
    return guard.refusal(400, "This is not a valid HTTP request.")


def _large_head() -> ProblemError:
    return guard.refusal(431, f"The head of the request has more than {HEAD_BYTES} bytes or {HEAD_LINES} lines.")
