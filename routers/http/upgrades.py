"""Read the body of a request whose upgrade was declined."""

from collections.abc import Iterable
from typing import Protocol

import httptools

FRAMING = (b"content-length", b"transfer-encoding")
"""The headers that announce a body."""


class Receiver(Protocol):
    """Define what receives a body."""

    def on_body(self, body: bytes) -> None:
        """Receive a piece of the body."""

    def on_message_complete(self) -> None:
        """Receive the end of the body."""


def parser_of_body(receiver: Receiver, headers: Iterable[tuple[bytes, bytes]]) -> httptools.HttpRequestParser:
    """Return a parser that reads one body, framed by these headers."""
    lines = b"".join(b"%s: %s\r\n" % line for line in headers if line[0] in FRAMING)
    parser = httptools.HttpRequestParser(_BodyOnly(receiver))
    parser.feed_data(b"POST / HTTP/1.1\r\n" + lines + b"\r\n")
    return parser


class _BodyOnly:
    """Receive the callbacks of a parser that reads one body only."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._is_over = False

    def on_body(self, body: bytes) -> None:
        if not self._is_over:
            self._receiver.on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._receiver.on_message_complete()
