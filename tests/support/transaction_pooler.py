"""A small connection pooler in transaction mode, for tests where PgBouncer is absent or too old.

Like PgBouncer it announces process ids of its own, refuses unknown start-up parameters, and gives a server connection
back at the end of each transaction. With `tracks` it also renames prepared statements and prepares them on each server
connection that lacks them, as PgBouncer does since 1.21.
"""

import argparse
import asyncio
import contextlib
import hashlib
import secrets
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

_CANCEL, _SSL, _GSS = 80877102, 80877103, 80877104
_ACCEPTED = {"user", "database", "application_name", "client_encoding"}


@dataclass
class Message:
    """A message of the protocol: https://www.postgresql.org/docs/current/protocol-message-formats.html."""

    kind: bytes
    body: bytes

    def packed(self) -> bytes:
        """The message as it is sent."""
        return self.kind + struct.pack("!I", len(self.body) + 4) + self.body


async def read(reader: asyncio.StreamReader) -> Message:
    """The next message; raises IncompleteReadError at the end."""
    kind, length = struct.unpack("!cI", await reader.readexactly(5))
    return Message(kind, await reader.readexactly(length - 4))


@dataclass
class Server:
    """A connection to PostgreSQL."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    greeting: bytes
    prepared: set[str] = field(default_factory=set)
    is_broken: bool = False

    @classmethod
    async def connect(cls, path: str, user: str, name: str) -> "Server":
        """Log in, which needs no password here."""
        reader, writer = await asyncio.open_unix_connection(path)
        body = struct.pack("!I", 196608) + b"".join(
            part.encode() + b"\0" for part in ("user", user, "database", name, "")
        )
        writer.write(struct.pack("!I", len(body) + 4) + body)
        greeting = b""
        while (message := await read(reader)).kind != b"Z":
            if message.kind == b"E":
                raise ConnectionError(message.body)
            if message.kind in (b"R", b"S"):
                greeting += message.packed()
        return cls(reader, writer, greeting)


class Pool:
    """At most `size` connections to each database, the last used first."""

    def __init__(self, path: str, size: int) -> None:
        self._path = path
        self._size = size
        self._idle: dict[tuple[str, str], list[Server]] = {}
        self._free: dict[tuple[str, str], asyncio.Semaphore] = {}
        self._greetings: dict[tuple[str, str], bytes] = {}

    async def greeting(self, key: tuple[str, str]) -> bytes:
        """What the server says to a new client; asked once, so a full pool lets clients in, as PgBouncer does."""
        if key not in self._greetings:
            server = await self.take(key)
            self._greetings[key] = server.greeting
            self.give_back(key, server, whole=True)
        return self._greetings[key]

    async def take(self, key: tuple[str, str]) -> Server:
        """A connection that no other client has."""
        await self._free.setdefault(key, asyncio.Semaphore(self._size)).acquire()
        idle = self._idle.setdefault(key, [])
        while idle:
            server = idle.pop()
            if not server.reader.at_eof():
                return server
        try:
            return await Server.connect(self._path, *key)
        except BaseException:
            self._free[key].release()
            raise

    def give_back(self, key: tuple[str, str], server: Server, *, whole: bool) -> None:
        """Keep the connection for others, or close it where a transaction was left open."""
        if whole and not server.is_broken:
            self._idle[key].append(server)
        else:
            server.writer.close()
        self._free[key].release()


class Client:
    """One connection of a client."""

    def __init__(self, pool: Pool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tracks: bool) -> None:
        self._pool = pool
        self._reader = reader
        self._writer = writer
        self._tracks = tracks
        self._key = ("", "")
        self._server: Server | None = None
        self._pump: asyncio.Task[None] | None = None
        self._pending = 0
        self._statements: dict[bytes, bytes] = {}
        self._hidden: dict[bytes, deque[bool]] = {b"1": deque(), b"3": deque()}

    async def serve(self) -> None:
        """Pass messages on until either side goes."""
        try:
            if await self._greet():
                while (message := await read(self._reader)).kind != b"X":
                    if self._server is None:
                        self._server = await self._pool.take(self._key)
                        self._pump = asyncio.create_task(self._answer(self._server))
                    self._pending += message.kind in (b"Q", b"S")
                    for part in self._renamed(message, self._server) if self._tracks else [message]:
                        self._server.writer.write(part.packed())
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            if self._pump is not None:
                self._pump.cancel()
            if self._server is not None:
                self._pool.give_back(self._key, self._server, whole=False)
            self._writer.close()

    async def _greet(self) -> bool:
        while True:
            (length,) = struct.unpack("!I", await self._reader.readexactly(4))
            body = await self._reader.readexactly(length - 4)
            (code,) = struct.unpack("!I", body[:4])
            if code == _CANCEL:
                return False
            if code not in (_SSL, _GSS):
                break
            self._writer.write(b"N")
        words = body[4:].decode().split("\0")
        given = dict(zip(words[::2], words[1::2], strict=False))
        for name in set(given) - _ACCEPTED - {""}:
            error = f"SFATAL\0C08P01\0Munsupported startup parameter: {name}\0\0"
            self._writer.write(Message(b"E", error.encode()).packed())
            return False
        self._key = given["user"], given["database"]
        greeting = await self._pool.greeting(self._key)
        number = struct.pack("!II", secrets.randbits(31), secrets.randbits(31))
        self._writer.write(greeting + Message(b"K", number).packed() + Message(b"Z", b"I").packed())
        return True

    async def _answer(self, server: Server) -> None:
        """Pass answers on until the transaction has ended."""
        try:
            while True:
                message = await read(server.reader)
                hidden = self._hidden.get(message.kind)
                if not (hidden and hidden.popleft()):
                    self._writer.write(message.packed())
                server.is_broken |= message.kind == b"E" and self._tracks  # it may lack statements, or have too many
                if message.kind == b"Z":
                    self._pending -= 1
                    if self._pending == 0:
                        for queue in self._hidden.values():
                            queue.clear()
                        if message.body == b"I":
                            self._server = None
                            self._pool.give_back(self._key, server, whole=True)
                            return
        except (OSError, asyncio.IncompleteReadError):
            self._writer.close()

    def _renamed(self, message: Message, server: Server) -> list[Message]:
        """The messages for the server, whose statements are named after their text."""
        if message.kind == b"P":
            name, rest = message.body.split(b"\0", 1)
            if not name:
                return self._sent([message], hidden=False)
            self._statements[name] = rest
            own = _name_of(rest)
            close = [Message(b"C", b"S" + own.encode() + b"\0")] if own in server.prepared else []
            return self._sent(close, hidden=True) + self._sent([self._parse(rest, server)], hidden=False)
        if message.kind == b"B":
            portal, name, rest = message.body.split(b"\0", 2)
            return self._with(name, server, lambda own: Message(b"B", b"\0".join((portal, own, rest))), message)
        if message.kind in (b"D", b"C") and message.body[:1] == b"S":
            name = message.body[1:-1]
            if message.kind == b"C":
                self._statements.pop(name, None)
                return self._sent([Message(b"C", b"Snone\0")], hidden=False)
            return self._with(name, server, lambda own: Message(b"D", b"S" + own + b"\0"), message)
        return self._sent([message], hidden=False) if message.kind == b"C" else [message]

    def _with(self, name: bytes, server: Server, make: Callable[[bytes], Message], message: Message) -> list[Message]:
        rest = self._statements.get(name)
        if rest is None:
            return [message]
        own = _name_of(rest)
        missing = [] if own in server.prepared else [self._parse(rest, server)]
        return [*self._sent(missing, hidden=True), make(own.encode())]

    def _parse(self, rest: bytes, server: Server) -> Message:
        own = _name_of(rest)
        server.prepared.add(own)
        return Message(b"P", own.encode() + b"\0" + rest)

    def _sent(self, messages: list[Message], *, hidden: bool) -> list[Message]:
        for message in messages:
            self._hidden[b"1" if message.kind == b"P" else b"3"].append(hidden)
        return messages


def _name_of(parsed: bytes) -> str:
    return "POOLER_" + hashlib.sha256(parsed).hexdigest()[:16]


async def _main(port: int, path: str, size: int, tracks: bool) -> None:
    pool = Pool(path, size)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Client(pool, reader, writer, tracks).serve()

    async with await asyncio.start_server(connected, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("path", help="the server's Unix socket")
    parser.add_argument("size", type=int, help="connections to the server for one user and database, at most")
    parser.add_argument("--tracks", action="store_true")
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(given.port, given.path, given.size, given.tracks))
