"""HTTP as strangers speak it: bytes over sockets to a server of this test's own."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import httpx
import uvicorn

from app import serving
from app.settings import Settings
from main import create_app
from routers.http.connections import Connection
from routers.http.guard import Guard, Limits

DEADLINE_SECONDS = 30.0
LATEST_SECONDS = 2.0
"""An answer to other callers later than this is a stall; those that this suite is about took from 3 s on."""


class Answer(NamedTuple):
    """What came back; the status is 0 where the connection ended without an answer."""

    status: int
    head: str
    body: bytes
    is_closed: bool


@contextlib.contextmanager
def served(settings: dict[str, Any], limits: Limits | None = None) -> Iterator[int]:
    """Run the application behind its guard, in a thread; give the port."""
    loaded = Settings.load(**settings)
    guard = Guard(limits or Limits(1000, 500))
    protocol: Any = partial(Connection, guard)
    config = uvicorn.Config(
        partial(create_app, loaded), factory=True, http=protocol, ws="none", log_config=None, access_log=False
    )
    server = serving.Server(config)
    with serving.listen("127.0.0.1", 0) as listener:
        port: int = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            until(lambda: server.started, "the server has started")
            yield port
        finally:
            server.should_exit = True
            thread.join()


def until(is_so: Any, what: str) -> None:
    """Wait for something."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)


class Wire:
    """One connection to a server."""

    def __init__(self, port: int, source: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS, (source, 0))
        if self.socket.getsockname() == self.socket.getpeername():  # TCP connects a free port to itself
            self.socket.close()
            raise ConnectionRefusedError(f"no server listens on port {port}")
        self._read = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def send(self, *pieces: bytes) -> None:
        """Send all."""
        for piece in pieces:
            self.socket.sendall(piece)

    def pour(self, pieces: Iterable[bytes]) -> int:
        """Send until all is sent or the server has closed; return how many bytes were sent."""
        sent = 0
        with contextlib.suppress(ConnectionError, TimeoutError):
            for piece in pieces:
                self.socket.sendall(piece)
                sent += len(piece)
        return sent

    def receive(self) -> Answer:
        """Read one answer, and, where it announces it, whether the server closes at once."""
        while b"\r\n\r\n" not in self._read and self._read_more():
            pass
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        if not head:
            return Answer(0, "", b"", True)
        text = head.decode("latin-1").lower()
        length = int(text.partition("content-length: ")[2].partition("\r\n")[0] or 0)
        while len(self._read) < length and self._read_more():
            pass
        body, self._read = self._read[:length], self._read[length:]
        return Answer(int(head.split()[1]), text, body, "connection: close" in text and self.is_over())

    def is_over(self) -> bool:
        """Wait for more, and tell whether there is none."""
        return not self._read and not self._read_more()

    def _read_more(self) -> bool:
        try:
            piece = self.socket.recv(65_536)
        except ConnectionError:
            return False
        self._read += piece
        return bool(piece)


def connect(port: int, source: str = "127.0.0.1") -> Wire:
    """Open a connection, from another address of this machine if wanted."""
    return Wire(port, source)


def exchange(port: int, *pieces: bytes, source: str = "127.0.0.1") -> Answer:
    """Send all pieces, whatever the server thinks of it, and read the answer."""
    with connect(port, source) as wire:
        wire.pour(pieces)
        return wire.receive()


def get(path: str, *lines: str) -> bytes:
    """A request without a body."""
    return request("GET", path, *lines)


def request(method: str, path: str, *lines: str, body: bytes = b"") -> bytes:
    """A request; its body has a Content-Length unless the lines say how it is framed."""
    framed = any("encoding" in line.lower() or "length" in line.lower() for line in lines)
    length = () if framed or not body else (f"Content-Length: {len(body)}",)
    head = "\r\n".join((f"{method} {path} HTTP/1.1", "Host: x", *lines, *length, "", ""))
    return head.encode("latin-1") + body


@dataclass
class Others:
    """Callers who ask for `/health` and `/auth/me` all the time, and how long they wait."""

    address: str
    headers: dict[str, str]
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """Call meanwhile; each answer must be good, and none may be late."""
        stop = threading.Event()
        threads = [threading.Thread(target=self._call, args=(path, stop)) for path in ("/health", "/auth/me")]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert self.failures == []
        assert max(self.seconds) < LATEST_SECONDS

    def _call(self, path: str, stop: threading.Event) -> None:
        with httpx.Client(base_url=self.address, headers=self.headers, trust_env=False, timeout=60) as client:
            while True:
                begun = time.monotonic()
                try:
                    answer = client.get(path)
                    if answer.status_code != 200:
                        self.failures.append(answer.text)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                self.seconds.append(time.monotonic() - begun)
                if stop.wait(0.02):
                    return
