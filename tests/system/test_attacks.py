"""Strangers and small accidents: while they go on, `/health` and `/auth/me` of other callers are answered."""

import asyncio
import itertools
import json
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence

import httpx
import pytest

from app.db.database import Database
from tests.support import accounts, commands, invariants, raw_http, records
from tests.support.accounts import Caller
from tests.support.raw_http import Answer, Others, Wire, exchange, get, request
from tests.support.records import record

pytestmark = pytest.mark.long

MEGABYTE = 2**20
JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"
FORM = "Content-Type: application/x-www-form-urlencoded"
INVENTED_KEY = "Authorization: Bearer fbk_1_invented"


@pytest.fixture(scope="module")
def served(templates: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """One server for all of these tests, as an operator starts it: the URL of its database, and its address."""
    directory = tmp_path_factory.mktemp("attacked")
    shutil.copy(templates["sqlite"], directory / "app.db")
    url = f"sqlite:///{directory / 'app.db'}"
    with commands.server(url, directory, LOG_LEVEL="WARNING") as address:
        yield url, address


@pytest.fixture
def database_url(served: tuple[str, str]) -> str:
    """The URL of the server's database."""
    return served[0]


@pytest.fixture
def address(served: tuple[str, str]) -> str:
    """The address of the server."""
    return served[1]


@pytest.fixture
def port(address: str) -> int:
    """The port of the server."""
    return int(address.rpartition(":")[2])


@pytest.fixture
async def ayu(database: Database) -> Caller:
    """A user of this test alone."""
    return await accounts.add(database, f"ayu-{uuid.uuid4()}")


@pytest.fixture
async def service(database: Database) -> Caller:
    """A backend that reports usage."""
    return await accounts.add(database, f"service-{uuid.uuid4()}", role="service")


@pytest.fixture
def others(address: str, ayu: Caller) -> Others:
    """Callers who are not part of the attack."""
    return Others(address, ayu.headers)


async def counted(database: Database, caller: Caller) -> int:
    """Check the invariants, and return how many messages of the caller are counted."""
    sums = await invariants.check(database)
    return sum(totals.message_count for (user_id, _), totals in sums.items() if user_id == caller.id)


def bearer(caller: Caller) -> str:
    return f"Authorization: {caller.headers['Authorization']}"


def bodies(service: Caller) -> dict[str, bytes]:
    """Each with 12 MB or more to `/usage/records`, by name."""
    size = 12 * MEGABYTE
    return {
        "numbers": b'{"records": [' + b"0," * (size // 2) + b"0]}",
        "lists": b"[],".join([b"["] + [b""] * (size // 3)) + b"0]",
        "nested": b"[" * size,
        "keys": b"{" + b",".join(b'"%d":0' % i for i in range(size // 12)) + b"}",
        "empty records": b'{"records": [' + b"{}," * (size // 3) + b"{}]}",
        "a large number": b'{"records": [' + b"9" * size + b"]}",
        "a precise number": b'{"records": [0.' + b"9" * size + b"]}",
        "an exponent": b'{"records": [1e' + b"9" * size + b"]}",
        "a long text": b'{"records": ["' + b"\\u00e9" * (size // 6) + b'"]}',
        "quotes": b'{"records": [' + b'"",' * (size // 3) + b'""]}',
        "backslashes": b'{"records": ["' + b"\\\\" * (size // 2) + b'"]}',
        "white space": b" " * size,
        "no UTF-8": b"\xff" * size,
        "bad records": json.dumps(
            {"records": [record(service, content=i, cost="x" * 10_000) for i in range(1000)]}
        ).encode(),
    }


async def test_large_bodies_do_not_stop_the_others(port: int, others: Others, ayu: Caller, service: Caller) -> None:
    def attack() -> None:
        for name, body in bodies(service).items():
            for credentials, status in ((INVENTED_KEY, 401), (bearer(ayu), 403), (bearer(service), 422)):
                answer = exchange(port, request("POST", "/usage/records", credentials, JSON, body=body))
                assert answer.status == status, f"{name}: {answer}"
                assert len(answer.body) < 65_536, name
            for path in ("/auth/login", "/auth/register", "/auth/token", "/chat"):
                kind = FORM if path == "/auth/token" else JSON
                answer = exchange(port, request("POST", path, kind, body=body + b" " * 4 * MEGABYTE))
                assert answer.status in (401, 413), f"{name}: {answer}"

    with others.calling():
        await asyncio.to_thread(attack)


async def test_a_legal_body_of_16_mb_does_not_stop_them_either(
    port: int, others: Others, ayu: Caller, service: Caller, database: Database
) -> None:
    batch = {"records": [record(ayu, content="\U0001f984" * 1_300) for _ in range(1000)]}
    body = json.dumps(batch).encode()
    body += b" " * (16 * MEGABYTE - len(body))
    with others.calling():
        answer = await asyncio.to_thread(
            exchange, port, request("POST", "/usage/records", bearer(service), JSON, body=body)
        )
    assert (answer.status, json.loads(answer.body)) == (200, {"recorded": 1000, "duplicates": 0})
    assert await counted(database, ayu) == 1000


def endless(piece: bytes, size: int = 64 * MEGABYTE) -> Iterator[bytes]:
    return itertools.repeat(piece * (65_536 // len(piece)), size // 65_536)


def test_endless_heads_and_framing_do_not_stop_the_others(port: int, others: Others) -> None:
    begun = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    chunked = request("POST", "/auth/login", CHUNKED, JSON)
    attacks = {
        "one line": ((begun + b"X: ",), b"x", 431),
        "many lines": ((begun,), b"X: y\r\n", 431),
        "a folded line": ((begun + b"X: y",), b"\r\n z", 400),
        "a name": ((begun,), b"x", 431),
        "a target": ((b"GET /",), b"x", 414),
        "a query": ((b"GET /health?",), b"a&", 414),
        "empty lines": ((), b"\r\n", 431),
        "trailers": ((chunked, b"0\r\n"), b"X: y\r\n", 400),
        "a trailer": ((chunked, b"0\r\nX: "), b"y", 400),
        "chunk extensions": ((chunked, b"1;"), b"a=b;", 400),
        "small chunks": ((chunked,), b"1\r\nx\r\n", 400),
        "a chunk's size": ((chunked,), b"0", 400),
    }
    with others.calling():
        for name, (beginning, piece, status) in attacks.items():
            answer = exchange(port, *beginning, *endless(piece))
            assert answer.status == status, f"{name}: {answer}"


async def together(count: int, call: Callable[[], None]) -> None:
    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)


async def test_many_attacks_at_once_do_not_stop_the_others(port: int, others: Others) -> None:
    body = request("POST", "/usage/records", INVENTED_KEY, JSON, body=b"[" + b"0," * 2 * MEGABYTE)
    found: list[Answer] = []

    def attack() -> None:
        found.append(exchange(port, body))
        found.append(exchange(port, b"GET / HTTP/1.1\r\nX: ", *endless(b"x", 4 * MEGABYTE)))
        found.append(exchange(port, *[get("/health") * 100] * 5))

    with others.calling():
        await together(20, attack)
    assert {answer.status for answer in found} == {401, 431, 200}


def hold(port: int, beginnings: Sequence[bytes], count: int) -> list[Wire]:
    wires = [raw_http.connect(port) for _ in range(count)]
    for wire, beginning in zip(wires, itertools.cycle(beginnings), strict=False):
        wire.send(beginning)
    return wires


def test_two_hundred_slow_callers_do_not_stop_the_others(port: int, others: Others) -> None:
    head, body = b"GET /health HTTP/1.1\r\n", request("POST", "/auth/login", JSON, "Content-Length: 100000")
    with others.calling():
        wires = hold(port, (b"", head, body), 200)
        for _ in range(20):
            for wire in wires:
                wire.pour([b"X"])
    for wire in wires:
        wire.close()


async def test_five_hundred_streams_go_on_at_once(
    address: str, port: int, others: Others, ayu: Caller, database: Database
) -> None:
    question = json.dumps({"message": "one two three"}).encode()
    streams, waves = 500, 5  # each request waits at most 10 s for its turn, on a slow machine too
    asked = [request("POST", "/chat", bearer(ayu), JSON, "Connection: close", body=question)]

    def ask_all() -> int:
        wires = [(wire, wire.socket.recv(1)) for _ in range(waves) for wire in hold(port, asked, streams // waves)]
        done = 0
        for wire, text in wires:
            while piece := wire.socket.recv(65_536):
                text += piece
            done += b"event: done" in text
            wire.close()
        return done

    with others.calling():
        assert await asyncio.to_thread(ask_all) == streams
    assert await counted(database, ayu) == streams


def test_pipelined_requests_do_not_stop_the_others(port: int, others: Others) -> None:
    with others.calling(), raw_http.connect(port) as wire:
        wire.send(get("/health") * 5000)
        assert {wire.receive().status for _ in range(5000)} == {200}


async def test_counting_stays_exact_under_attack(
    address: str, port: int, ayu: Caller, service: Caller, database: Database
) -> None:
    def attack() -> None:
        for _ in range(5):
            exchange(port, request("POST", "/usage/records", bearer(service), JSON, body=b"[" + b"0," * MEGABYTE))
            with raw_http.connect(port) as wire:  # which breaks off within the body
                wire.send(request("POST", "/usage/records", bearer(service), JSON, "Content-Length: 10000"), b"{")

    async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as client:
        attacking = asyncio.create_task(asyncio.to_thread(attack))
        for _ in range(20):
            await records.store(client, service, [record(ayu)])
        await attacking
    assert await counted(database, ayu) == 20
