"""Whose address a request has: behind trusted proxies, and only behind those."""

from collections.abc import Iterator
from typing import Any

import pytest

from app import addresses
from services.accounts import logins
from tests.support import raw_http
from tests.support.accounts import SECRET_KEY
from tests.support.raw_http import exchange, request

LOGIN = b'{"username": "ayu", "password": "no"}'
JSON = "Content-Type: application/json"
LIMIT = 3
ODD = ["", "x", "999.1.1.1", "203.0.113.1:80", "[2001:db8::1]:80", "unknown", ",", "1.2.3.4," * 500]


@pytest.fixture(params=["sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """Addresses do not depend on the database."""
    return str(request.param)


@pytest.fixture
def port(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server that trusts one proxy, and takes a few failed logins from an address."""
    monkeypatch.setattr(logins, "FAILED_LOGIN_SECONDS", 0.01)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.9")
    settings: dict[str, Any] = {"database_url": database_url, "secret_key": SECRET_KEY}
    settings |= {"max_failed_logins_per_address": LIMIT, "max_failed_logins_per_account": 0}
    with raw_http.served(settings | {"max_failed_logins_per_account_total": 0}) as port:
        yield port


def log_in(port: int, source: str, *forwarded: str) -> int:
    lines = [JSON, *(f"X-Forwarded-For: {address}" for address in forwarded)]
    return exchange(port, request("POST", "/auth/login", *lines, body=LOGIN), source=source).status


def test_nobody_chooses_their_own_address(port: int) -> None:
    found = [log_in(port, "127.0.0.2", f"203.0.113.{i}") for i in range(LIMIT + 1)]
    assert found == [401] * LIMIT + [429]
    headers = ("Forwarded: for=203.0.113.9", "X-Real-IP: 203.0.113.9", "X-Client-IP: 203.0.113.9", "Via: 1.1 x")
    for header in headers:
        data = request("POST", "/auth/login", JSON, header, body=LOGIN)
        assert exchange(port, data, source="127.0.0.2").status == 429


def test_a_trusted_proxy_says_whose_request_it_is(port: int) -> None:
    assert [log_in(port, "127.0.0.9", "203.0.113.1") for _ in range(LIMIT + 1)] == [401] * LIMIT + [429]
    assert log_in(port, "127.0.0.9", "203.0.113.2") == 401


def test_what_a_caller_sends_through_a_proxy_is_not_believed(port: int) -> None:
    found = [log_in(port, "127.0.0.9", f"198.51.100.{i}, 203.0.113.1") for i in range(LIMIT)]
    found += [log_in(port, "127.0.0.9", "198.51.100.9", "203.0.113.1")]
    assert found == [401] * LIMIT + [429], "the last address is the proxy's own word"


def test_an_ipv6_network_is_one_caller(port: int) -> None:
    found = [log_in(port, "127.0.0.9", f"2001:db8::{i:x}:1") for i in range(LIMIT + 1)]
    assert found == [401] * LIMIT + [429]
    assert log_in(port, "127.0.0.9", "2001:db8:0:1::1") == 401


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_address_is_no_error(port: int, odd: str) -> None:
    assert log_in(port, "127.0.0.9", odd) in (401, 429)


def test_networks_are_those_of_the_family() -> None:
    same = {"203.0.113.1": "203.0.113.1", "::ffff:203.0.113.1": "203.0.113.1", "2001:db8::1%eth0": "2001:db8::/64"}
    assert {host: addresses.network_of(host) for host in same} == same
    assert addresses.network_of("/run/socket") == "/run/socket"
