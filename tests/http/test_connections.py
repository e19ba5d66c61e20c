"""Connections before HTTP is parsed: heads, framing, odd requests, slow callers, and how many there are."""

import itertools

import pytest

from routers.http.connections import HEAD_BYTES, HEAD_LINES, URL_BYTES
from tests.support.accounts import Caller
from tests.support.raw_http import connect, exchange, get, request
from tests.support.served_bytes import CHUNKED, JSON, LOGIN, app_settings, kind, limits, port, problem

__all__ = ["app_settings", "kind", "limits", "port"]


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
@pytest.mark.sampled(10)
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


@pytest.mark.long
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
