"""Detect requests over a kept connection that the service had closed.

A service closes an idle connection at a time of its own choosing, maybe just when the next request is sent. It never
received that request, which therefore costs nothing and may be sent again (RFC 9112, section 9.3.1).
"""

import time
from types import SimpleNamespace

import aiohttp

# Seconds in which the close arrives. After a later failure, the service may have received the request.
_STALE_SECONDS = 1.0


class Sending:
    """Observe a request that is being sent, as its `trace_request_ctx`."""

    _reused_at: float | None = None

    def note_reuse(self) -> None:
        """Note that the request is sent now, over a kept connection."""
        self._reused_at = time.monotonic()

    @property
    def is_stale(self) -> bool:
        """Return whether a loss of the connection means an earlier close."""
        return self._reused_at is not None and time.monotonic() - self._reused_at < _STALE_SECONDS


def tracing() -> aiohttp.TraceConfig:
    """Return the configuration of a session whose requests have a `Sending`."""

    async def note(_session: object, context: SimpleNamespace, _parameters: object) -> None:
        context.trace_request_ctx.note_reuse()

    config = aiohttp.TraceConfig()
    config.on_connection_reuseconn.append(note)
    return config
