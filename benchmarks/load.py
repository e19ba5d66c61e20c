"""Send HTTP requests in a closed loop over persistent connections.

The client is lean enough not to limit the server.
"""

import contextlib
import selectors
import socket
import time
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

_TIMEOUT_SECONDS = 60.0
_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length: "
_LAST_CHUNK = b"0\r\n\r\n"


def request(method: str, path: str, token: str, body: bytes = b"") -> bytes:
    """Return a complete HTTP request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


class _Connection:
    def __init__(self, address: str) -> None:
        self.socket = connect(address)
        self.sent_at = 0.0
        self._received = b""

    def send(self, data: bytes) -> None:
        self._received = b""
        self.sent_at = time.perf_counter()
        self.socket.sendall(data)

    def is_answered(self) -> bool:
        """Receive data, and return whether the response is complete.

        Raises:
            AssertionError: the status is not 200.
            ConnectionError: the server closed the connection.
        """
        part = self.socket.recv(262_144)
        if not part:
            raise ConnectionError("the server closed the connection")
        self._received += part
        head, end, body = self._received.partition(_END_OF_HEAD)
        if not end:
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise AssertionError(self._received.decode(errors="replace"))
        length = head.lower().partition(_LENGTH)[2].partition(b"\r")[0]
        return len(body) >= int(length) if length else body.endswith(_LAST_CHUNK)


def connect(address: str, receive_bytes: int | None = None) -> socket.socket:
    """Connect to a server's address.

    Args:
        address: the server's URL.
        receive_bytes: a limit of the receive buffer, in bytes.
    """
    parts = urlsplit(address)
    connected = socket.socket()
    if receive_bytes is not None:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connected.settimeout(_TIMEOUT_SECONDS)
    connected.connect((parts.hostname, parts.port))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def run(address: str, requests: Iterable[bytes], connections: int = 1, seconds: float = 3600.0) -> list[float]:
    """Send requests, one at a time on each connection.

    The load ends with the last request, or after the given time.

    Returns:
        The seconds of each response. The last element is the duration of the whole load, in seconds.
    """
    pending = iter(requests)
    took: list[float] = []
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        started = time.perf_counter()
        for _ in range(connections):
            _open(address, pending, selector, stack)
        while selector.get_map():
            for key, _ in selector.select():
                connection: _Connection = key.data
                if connection.is_answered():
                    now = time.perf_counter()
                    took.append(now - connection.sent_at)
                    following = next(pending, None) if now - started < seconds else None
                    if following is None:
                        selector.unregister(connection.socket)
                    else:
                        connection.send(following)
        return [*took, time.perf_counter() - started]


def _open(
    address: str, pending: Iterator[bytes], selector: selectors.BaseSelector, stack: contextlib.ExitStack
) -> None:
    first = next(pending, None)
    if first is not None:
        connection = _Connection(address)
        stack.enter_context(contextlib.closing(connection.socket))
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.send(first)
