"""Connections before HTTP is parsed: heads, framing, odd requests, slow callers, and how many there are."""

import asyncio
import itertools
import json
import logging
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from app.settings import Settings
from routers.http import connections, guard
from routers.http.connections import HEAD_BYTES, HEAD_LINES, URL_BYTES
from routers.http.guard import RESERVE, Guard, Limits
from tests.support import raw_http
from tests.support.accounts import SECRET_KEY, Caller
from tests.support.raw_http import Answer, connect, exchange, get, request

CHUNKED = "Transfer-Encoding: chunked"
JSON = "Content-Type: application/json"
LOGIN = json.dumps({"username": "ayu", "password": "no"}).encode()


@pytest.fixture(params=["sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """Connections do not depend on the database."""
    return str(request.param)


@pytest.fixture
def app_settings(database_url: str) -> dict[str, Any]:
    """The settings of the application under test."""
    return {"database_url": database_url, "secret_key": SECRET_KEY}


@pytest.fixture
def limits() -> Limits:
    """How many connections the server accepts; a parameter of a test's own sets others."""
    return Limits(1000, 500)


@pytest.fixture
def port(app_settings: dict[str, Any], limits: Limits) -> Iterator[int]:
    """Of a server."""
    with raw_http.served(app_settings, limits) as port:
        yield port


def problem(answer: Answer, status: int) -> str:
    """Demand a problem of this status after which the connection is closed; return its detail."""
    assert answer.status == status, answer
    assert "content-type: application/problem+json" in answer.head
    assert answer.is_closed
    told = json.loads(answer.body)
    assert told["status"] == status
    return str(told["detail"])


def test_a_head_of_more_than_64_kb_is_refused(port: int) -> None:
    assert exchange(port, get("/health", f"X: {'x' * (HEAD_BYTES - 100)}")).status == 200
    problem(exchange(port, get("/health", f"X: {'x' * HEAD_BYTES}")), 431)
    many = [f"X-{i}: {'x' * 800}" for i in range(100)]
    problem(exchange(port, get("/health", *many)), 431)
    begun = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    for endless in (b"X: " + b"x" * 1_000_000, b"x" * 1_000_000, b"X: y\r\n z" * 100_000):
        problem(exchange(port, begun, endless), 400 if b"\n z" in endless else 431)
    problem(exchange(port, *[b"\r\n" * 1000] * 200), 431)


def test_a_head_of_more_than_200_lines_is_refused(port: int) -> None:
    assert exchange(port, get("/health", *(f"X-{i}: 1" for i in range(HEAD_LINES - 1)))).status == 200
    assert "200 lines" in problem(exchange(port, get("/health", *(f"X-{i}: 1" for i in range(HEAD_LINES)))), 431)


def test_a_long_target_is_refused(port: int) -> None:
    assert exchange(port, get("/" + "x" * (URL_BYTES - 1))).status == 404
    problem(exchange(port, get("/" + "x" * URL_BYTES)), 414)
    problem(exchange(port, get("/health?" + "x" * URL_BYTES)), 414)
    problem(exchange(port, b"GET /", *[b"x" * 10_000] * 100), 414)


def test_framing_without_content_is_refused(port: int) -> None:
    head = request("POST", "/auth/login", CHUNKED, JSON)
    one_byte = b"1\r\nx\r\n" * 60_000
    extension = b"1;" + b"x" * 200_000
    zeros = b"0" * 200_000
    for body in (one_byte, extension, zeros):
        problem(exchange(port, head, body), 400)
    trailers = b"".join(b"X-%d: %s\r\n" % (i, b"x" * 1000) for i in range(200))
    last = b"%x\r\n%s\r\n0\r\n" % (len(LOGIN), LOGIN)
    problem(exchange(port, head, last, trailers), 400)
    problem(exchange(port, head, last, b"X: " + b"x" * 200_000), 400)


def test_small_chunks_and_trailers_are_read_as_http_has_them(port: int) -> None:
    head = request("POST", "/auth/login", CHUNKED, JSON)
    one_byte = b"".join(b"1;a=b\r\n%c\r\n" % byte for byte in LOGIN) + b"0\r\n"
    assert exchange(port, head, one_byte, b"\r\n").status == 401
    assert exchange(port, head, one_byte, b"X: y\r\n\r\n").status == 401
    for i in range(3):
        assert exchange(port, *(bytes((byte,)) for byte in get("/health", f"X: {i}"))).status == 200


async def test_a_trailer_is_no_header(port: int, ayu: Caller) -> None:
    token = f"Authorization: {ayu.headers['Authorization']}".encode()
    body = b"2\r\n{}\r\n0\r\n" + token + b"\r\n\r\n"
    with connect(port) as connection:
        connection.send(request("POST", "/auth/password", CHUNKED, JSON) + body)
        assert connection.receive().status == 401
        connection.send(get("/auth/me"))
        assert connection.receive().status == 401


SMUGGLED = [
    ("Content-Length: 2", "Content-Length: 3"),
    ("Content-Length: 2", "Content-Length: 2"),
    ("Content-Length: 2, 2",),
    ("Content-Length: +2",),
    ("Content-Length: -2",),
    ("Content-Length: 0x2",),
    ("Content-Length: 2 2",),
    ("Content-Length: ",),
    ("Content-Length: 99999999999999999999999",),
    ("Content-Length : 2",),
    (" Content-Length: 2",),
    ("Content-Length: 2", CHUNKED),
    (CHUNKED, "Content-Length: 2"),
    ("Transfer-Encoding: chunked, identity",),
    ("Transfer-Encoding: identity",),
    ("Transfer-Encoding: xchunked",),
    ("Transfer-Encoding: gzip",),
    ("Transfer-Encoding : chunked",),
    ("Transfer-Encoding: chunked, chunked",),
    (CHUNKED, CHUNKED),
    (CHUNKED, "Transfer-Encoding: identity"),
    ("Transfer-Encoding: \x0bchunked",),
    ("X: a\x00b",),
    ("X: a\rContent-Length: 2",),
    ("X\x00: a",),
    ("X y: a",),
    (": a",),
    ("X",),
    ("Host: y",),
]


@pytest.mark.parametrize("lines", SMUGGLED)
def test_ambiguous_framing_is_refused_and_ends_the_connection(port: int, lines: tuple[str, ...]) -> None:
    problem(exchange(port, request("POST", "/auth/login", JSON, *lines), b"{}" + get("/health")), 400)


def test_odd_requests_are_answered_by_problems(port: int) -> None:
    whole = {
        b"GET /health HTTP/1.1\r\n\r\n": 400,  # no Host
        b"GET /health HTTP/1.0\r\n\r\n": 200,
        b"GET /health HTTP/1.0\r\nHost: x\r\n\r\n": 200,
        b"GET /health\r\n\r\n": 505,  # HTTP/0.9
        b"GET /health HTTP/1.2\r\nHost: x\r\n\r\n": 400,
        b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n": 505,
        b"GET /health HTTP/1.1\nHost: x\n\n": 400,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": 400,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03": 400,  # TLS
        b"BREW /health HTTP/1.1\r\nHost: x\r\n\r\n": 400,
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n": 501,
        b"TRACE /health HTTP/1.1\r\nHost: x\r\n\r\n": 405,
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n": 404,
        b"GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n": 200,
        b"GET http://[/health HTTP/1.1\r\nHost: x\r\n\r\n": 400,
        b"GET health HTTP/1.1\r\nHost: x\r\n\r\n": 400,
        b"GET /h\xc3\xa4 HTTP/1.1\r\nHost: x\r\n\r\n": 400,
        b"GET / health HTTP/1.1\r\nHost: x\r\n\r\n": 400,
        b"HELLO\r\n\r\n": 400,
    }
    found = {data: exchange(port, data) for data in whole}
    assert {data: answer.status for data, answer in found.items()} == whole
    for answer in found.values():
        assert answer.status == 200 or "content-type: application/problem+json" in answer.head
        assert b"Traceback" not in answer.body


def test_odd_paths_lead_nowhere(port: int) -> None:
    paths = ("//health", "//auth/me", "/health/", "/./health", "/x/../health", "/%2e%2e/health", "/health%00", "/%00")
    odd = ("/health;x", "/health%2f", "/HEALTH", "/..", "/%", "/%zz", "/%ff", "/\\health", "/auth/me/..%2f..%2fhealth")
    for path in (*paths, *odd):
        answer = exchange(port, get(path))
        assert answer.status == 404, f"{path}: {answer}"
        assert "content-type: application/problem+json" in answer.head
    assert exchange(port, get("/he%61lth")).status == 200


def test_an_upgrade_is_declined_and_the_request_answered(port: int) -> None:
    h2c = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    websocket = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13")
    for lines in (h2c, websocket):
        with connect(port) as connection:
            connection.send(get("/health", *lines) + get("/ready"))
            assert [connection.receive().status for _ in range(2)] == [200, 200]
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(LOGIN), LOGIN)
    for data in (
        request("POST", "/auth/login", *h2c, JSON, body=LOGIN),
        request("POST", "/auth/login", *h2c, JSON, CHUNKED) + chunked,
    ):
        behind = request("POST", "/auth/login", JSON, body=b"{}")
        for pieces in ((data,), (data[:-9], data[-9:]), (data + behind,), tuple(bytes((byte,)) for byte in data)):
            answer = exchange(port, *pieces)
            assert answer.status == 401, "the body was read"
            assert answer.is_closed
    broken = request("POST", "/auth/login", *h2c, JSON, CHUNKED) + b"x\r\n"
    problem(exchange(port, broken), 400)


def test_a_body_is_asked_for_only_when_it_is_wanted(port: int) -> None:
    expect = ("Expect: 100-continue", JSON, "Content-Length: 60000")
    large = (*expect[:2], "Content-Length: 100000")
    with connect(port) as connection:
        connection.send(request("POST", "/usage/records", "Authorization: Bearer fbk_1_x", *large))
        assert connection.receive().status == 401
    with connect(port) as connection:
        connection.send(request("POST", "/auth/login", *expect))
        assert connection.receive().status == 100
        connection.send(LOGIN + b" " * (60_000 - len(LOGIN)))
        assert connection.receive().status == 401


def test_pipelined_requests_wait_and_are_answered_in_order(port: int) -> None:
    count = 3000
    with connect(port) as connection:
        for i in range(count):
            connection.send(get("/health", f"X-Request-ID: {i}"))
        ids = [connection.receive().head.partition("x-request-id: ")[2].partition("\r\n")[0] for _ in range(count)]
    assert ids == [str(i) for i in range(count)]


def test_bad_bytes_after_a_request_keep_its_response(port: int) -> None:
    for broken in (b"BROKEN\r\n\r\n", get("/health", "Content-Length: x"), b"GET /" + b"x" * 10_000):
        with connect(port) as connection:
            connection.send(request("POST", "/auth/login", JSON, body=LOGIN) + get("/health") + broken)
            assert [connection.receive().status for _ in range(2)] == [401, 200]
            assert connection.receive().status in (400, 414)
            assert connection.is_over()


def test_an_answer_before_the_end_of_the_body_can_be_read(port: int) -> None:
    body = b" " * 8_000_000
    for head in (
        request("POST", "/usage/records", JSON, f"Content-Length: {len(body)}"),
        request("POST", "/usage/records", JSON, f"Content-Length: {len(body)}", "Connection: close"),
        request("POST", "/auth/login", JSON, f"Content-Length: {len(body)}"),
        request("GET", "/health", f"Content-Length: {len(body)}"),
    ):
        with connect(port) as connection:
            assert connection.pour((head, body)) > len(body)
            assert connection.receive().status in (200, 401, 413)


def test_what_follows_an_answer_is_read_only_so_far(port: int) -> None:
    head = request("POST", "/usage/records", JSON, "Content-Length: 1000000000")
    with connect(port) as connection:
        sent = connection.pour(itertools.chain((head,), itertools.repeat(b" " * 100_000, 1000)))
    assert sent < 60_000_000


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short times."""
    times = {"HEAD_SECONDS": 0.5, "BODY_SECONDS": 0.5, "LINGER_SECONDS": 0.2}
    for name, seconds in times.items():
        monkeypatch.setattr(connections, name, seconds)
    monkeypatch.setattr(guard, "SWEEP_SECONDS", 0.05)


@pytest.mark.usefixtures("_fast")
def test_a_head_that_does_not_come_ends_the_connection(port: int) -> None:
    with connect(port) as idle, connect(port) as slow, connect(port) as later:
        later.send(get("/health"))
        assert later.receive().status == 200
        for connection in (slow, later):
            connection.send(b"GET /health HTTP/1.1\r\n")
        begun = time.monotonic()
        while time.monotonic() < begun + 0.3:
            slow.send(b"X: y\r\n")
            time.sleep(0.05)
        assert idle.is_over()
        assert [connection.receive().status for connection in (slow, later)] == [408, 408]


@pytest.mark.usefixtures("_fast")
def test_a_body_that_trickles_ends_the_connection(port: int) -> None:
    head = request("POST", "/auth/login", JSON, "Content-Length: 100000")
    chunked = request("POST", "/auth/login", JSON, CHUNKED)
    unread = request("GET", "/health", "Content-Length: 100000")
    for data, expected in ((head, 408), (chunked, 408), (unread, 200)):
        with connect(port) as connection:
            connection.send(data)
            assert connection.receive().status == expected
            assert connection.is_over()


@pytest.mark.usefixtures("_fast")
def test_a_slow_body_of_a_fair_rate_is_read(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODY_RATE", 20_000)
    with connect(port) as connection:
        connection.send(request("POST", "/auth/login", JSON, "Content-Length: 100000"))
        for _ in range(20):
            connection.send(b" " * 5000)
            time.sleep(0.05)
        assert connection.receive().status == 422


@pytest.mark.usefixtures("_fast")
def test_an_answer_that_nobody_reads_ends(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.5)
    with connect(port) as connection:
        some = get("/openapi.json") * 100
        raw_http.until(lambda: connection.pour([some]) < len(some), "the server closes the connection")


@pytest.mark.parametrize("limits", [Limits(1000, 5)])
def test_one_address_has_so_many_connections(
    app_settings: dict[str, Any], limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.9")
    with raw_http.served(app_settings, limits) as port:
        held = [connect(port, "127.0.0.2") for _ in range(5)]
        assert "this address" in problem(exchange(port, get("/health"), source="127.0.0.2"), 503)
        assert exchange(port, get("/health"), source="127.0.0.3").status == 200
        for connection in held:
            connection.close()
        raw_http.until(lambda: exchange(port, get("/health"), source="127.0.0.2").status == 200, "there is room again")
        proxy = [connect(port, "127.0.0.9") for _ in range(20)]
        assert exchange(port, get("/health"), source="127.0.0.9").status == 200
        for connection in proxy:
            connection.close()


@pytest.mark.parametrize("limits", [Limits(10, 0)])
def test_idle_connections_give_way_to_new_ones(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="access"):
        idle = [connect(port) for _ in range(40)]
        for connection in idle[5:]:
            connection.send(b"GET /health HTTP/1.1\r\n")
        for _ in range(20):
            assert exchange(port, get("/health")).status == 200
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "10 connections are open: closing idle ones for new ones"
    ], "once"
    for connection in idle:
        connection.close()


@pytest.mark.parametrize("limits", [Limits(10, 0)])
def test_health_is_answered_while_every_connection_is_busy(port: int) -> None:
    busy = [connect(port) for _ in range(10)]
    for connection in busy:
        connection.send(request("POST", "/auth/login", JSON, "Content-Length: 1000", "Expect: 100-continue"))
        assert connection.receive().status == 100
    for path in ("/health", "/ready"):
        answer = exchange(port, get(path))
        assert answer.status == 200
        assert answer.is_closed
    problem(exchange(port, get("/openapi.json")), 503)
    for connection in busy:
        connection.send(b"{}" + b" " * 998)
        assert connection.receive().status == 422
        connection.close()
    raw_http.until(lambda: exchange(port, get("/openapi.json")).status == 200, "there is room again")


@pytest.mark.parametrize("limits", [Limits(2, 0)])
def test_callers_of_the_reserve_who_stay_give_way(port: int) -> None:
    uploads = [connect(port) for _ in range(2)]
    for connection in uploads:
        connection.send(request("POST", "/auth/login", JSON, "Content-Length: 1000", "Expect: 100-continue"))
        assert connection.receive().status == 100
    staying = []
    for _ in range(RESERVE + 2):
        staying.append(connect(port))
        staying[-1].send(request("POST", "/health", JSON, "Content-Length: 1000", "Expect: 100-continue"))
        assert staying[-1].receive().status == 405
    assert exchange(port, get("/health")).status == 200
    for connection in uploads + staying:
        connection.close()


async def test_even_the_reserve_has_an_end() -> None:
    limited = Guard(Limits(2, 0))
    working = [working_connection() for _ in range(2 + RESERVE)]
    for connection in working:
        assert limited.admit(connection) is None
        limited.work(connection)
    assert [connection.is_in_reserve for connection in working] == [False] * 2 + [True] * RESERVE
    refused = working_connection()
    refusal = limited.admit(refused)
    assert refusal is not None
    assert refusal.status == 503
    for connection in (refused, working[-1]):
        limited.release(connection)
    assert limited.admit(working_connection()) is None
    for connection in working:
        connection.transport.abort.assert_not_called()


def working_connection() -> Any:
    return mock.Mock(address="", is_in_reserve=False, loop=asyncio.get_running_loop())


def test_the_settings_bound_connections() -> None:
    assert (Settings().max_connections, Settings().max_connections_per_address) == (10_000, 512)
