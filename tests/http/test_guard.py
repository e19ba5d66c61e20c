"""How long connections may take, and how many there are."""

import asyncio
import logging
import time
from typing import Any
from unittest import mock

import pytest

from app.settings import Settings
from routers.http import connections, guard
from routers.http.guard import RESERVE, Guard, Limits
from tests.support import raw_http
from tests.support.raw_http import connect, exchange, get, request
from tests.support.served_bytes import CHUNKED, JSON, app_settings, kind, limits, port, problem

__all__ = ["app_settings", "kind", "limits", "port"]


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


def test_an_answer_that_is_read_late_comes_whole(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SWEEP_SECONDS", 0.3)
    answers = 100
    with connect(port) as connection:
        connection.pour([get("/openapi.json") * answers])
        time.sleep(1)  # meanwhile, the first sweep finds answers that are not sent yet
        assert [connection.receive().status for _ in range(answers)] == [200] * answers


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
