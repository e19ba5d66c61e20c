"""Access tokens: which are taken, and that none ever gets into a log."""

import base64
import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from jose import jws, jwt

from app import clock, tokens
from app.database import Database
from app.errors import Unauthenticated
from tests import accounts, problems
from tests.accounts import SECRET_KEY

CLAIMS = {"sub": "1", "iat": 1_700_000_000, "exp": 4_000_000_000, "jti": "x"}


def signed(**claims: Any) -> str:
    """A token with these claims changed; None removes one."""
    return jwt.encode({name: value for name, value in (CLAIMS | claims).items() if value is not None}, SECRET_KEY)


def part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def with_header(header: bytes) -> str:
    """A token of this header, whose signature would be right for the usual one."""
    _, payload, signature = signed().split(".")
    return f"{part(header)}.{payload}.{signature}"


_head, _payload, _signature = signed().split(".")
REFUSED = {
    "garbage": "garbage",
    "dots": "..",
    "not base64": "§§.§§.§§".encode().decode("latin-1"),
    "bytes": f"{part(bytes(range(256)))}.{part(b'{}')}.{part(b'x')}",
    "a wrong key": jwt.encode(CLAIMS, SECRET_KEY + "!"),
    "an empty key": jwt.encode(CLAIMS, ""),
    "no signature": f"{_head}.{_payload}.",
    "another's signature": f"{_head}.{signed(sub='2').split('.')[1]}.{_signature}",
    "alg none": f"{part(json.dumps({'alg': 'none', 'typ': 'JWT'}).encode())}.{_payload}.",
    "alg none, signed": with_header(b'{"alg": "none"}'),
    "alg None": with_header(b'{"alg": null}'),
    "alg HS512": jwt.encode(CLAIMS, SECRET_KEY, algorithm="HS512"),
    "alg RS256": with_header(b'{"alg": "RS256"}'),
    "expired": signed(iat=1_600_000_000, exp=1_600_000_001),
    "no exp": signed(exp=None),
    "exp as text": signed(exp="soon"),
    "exp as an object": signed(exp={"a": 1}),
    "exp infinite": signed(exp=float("inf")),
    "exp as a fraction of nothing": signed(exp=float("nan")),
    "not before the year 2096": signed(nbf=4_000_000_000),
    "no sub": signed(sub=None),
    "a name as sub": signed(sub="ayu"),
    "no text as sub": jwt.encode(CLAIMS | {"sub": 1}, SECRET_KEY),
    "an empty sub": signed(sub=""),
    "sub 0": signed(sub="0"),
    "sub -1": signed(sub="-1"),
    "sub 1.0": signed(sub="1.0"),
    "sub in other digits": signed(sub="\u0661"),
    "sub with a space": signed(sub=" 1"),
    "sub with a NUL": signed(sub="1\x00"),
    "sub 2**31": signed(sub=str(2**31)),
    "sub 2**63": signed(sub=str(2**63)),
    "sub of 3000 digits": signed(sub="1" * 3000),
    "a header nested 1000 deep": with_header(b'{"alg":' + b"[" * 1000 + b"]" * 1000 + b"}"),
    "a payload nested 1000 deep": jws.sign(b"[" * 1000 + b"]" * 1000, SECRET_KEY),
    "a payload that is a list": jws.sign(b"[]", SECRET_KEY),
    "a payload that is no JSON": jws.sign(b"\xff", SECRET_KEY),
    "a header that is a list": with_header(b"[]"),
    "a header that is text": with_header(b'"alg"'),
    "too long": signed(padding="x" * 10_000),
}


async def test_no_forged_token_is_taken_and_none_is_logged(
    client: httpx.AsyncClient, database: Database, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    ayu = await accounts.add(database, "ayu")
    assert ayu.id == 1, "the tokens above are hers, but for what is wrong with them"
    caplog.set_level(logging.DEBUG)
    for name, token in REFUSED.items():
        answer = await client.get("/auth/me", headers=[(b"Authorization", f"Bearer {token}".encode())])
        assert answer.status_code == 401, f"{name}: {answer.text}"
        problems.check(answer, 401)
        assert token not in answer.text
    good = await client.get("/auth/me", headers={"Authorization": f"Bearer {signed()}"})
    assert good.status_code == 200
    logged = caplog.text + "".join(capfd.readouterr())
    assert "Traceback" not in logged
    secrets = [SECRET_KEY, _payload, _signature, *(token for token in REFUSED.values() if len(token) > 10)]
    assert [secret for secret in secrets if secret in logged] == []


@pytest.mark.parametrize("token", REFUSED.values(), ids=REFUSED)
def test_a_forged_token_is_refused(token: str) -> None:
    with pytest.raises(Unauthenticated) as refusal:
        tokens.verify(token, SECRET_KEY)
    assert token not in str(refusal.value)
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("user_id", [1, 7, 2**31 - 1])
def test_a_token_tells_whose_it_is_until_it_expires(user_id: int) -> None:
    token = tokens.issue(user_id, SECRET_KEY, clock.now(), timedelta(seconds=30))
    assert tokens.verify(token, SECRET_KEY) == user_id
    with pytest.raises(Unauthenticated):
        tokens.verify(token, "another key of the tests, long enough")
    old = tokens.issue(user_id, SECRET_KEY, clock.now() - timedelta(seconds=31), timedelta(seconds=30))
    with pytest.raises(Unauthenticated):
        tokens.verify(old, SECRET_KEY)


def test_a_token_holds_no_more_than_it_needs_and_each_is_another() -> None:
    issued_at = datetime(2026, 1, 1, tzinfo=UTC)
    first, second = (tokens.issue(7, SECRET_KEY, issued_at, timedelta(minutes=30)) for _ in range(2))
    claims = jwt.get_unverified_claims(first)
    assert jwt.get_unverified_header(first) == {"alg": "HS256", "typ": "JWT"}
    assert set(claims) == {"sub", "iat", "exp", "jti"}
    assert claims["sub"] == "7"
    assert claims["exp"] - claims["iat"] == 30 * 60
    assert claims["jti"] != jwt.get_unverified_claims(second)["jti"]
