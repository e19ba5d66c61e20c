"""Access tokens: which are taken, and that none ever gets into a log."""

import base64
import hmac
import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from jose import jws, jwt

from app import clock
from app.db.database import Database
from app.errors import Unauthenticated
from app.security import tokens
from tests.support import accounts, problems
from tests.support.accounts import SECRET_KEY

PRODUCT = {"app", "services", "routers", "main", "uvicorn"}
OTHER_KEY = "qhzuiKTVR8RU0Tv-vs2kIDCsaSztV52miftLaXcXwvtmvQhS"
PUBLIC_KEY = b"""\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAoHtRn/LVHwEdLOA3tELw
UkQRRt6pkB5U5BYY7RFz+JjZAnjyiPkr7sVKQP8BeR+Ffi72/V0wwDl9xvwYgIaL
XYOS5t+qWk6bO+3p/3B/QSpYiFKXi80eIVP+QPyjtYxTw9XqtFBe4u2wqIiB7Bhn
C/q28Gy7SblDG6G0cg/+bWGvd9BEZ6FzPpuWXcMkYEZMd3qt8T5l2AnsL49wY8aa
gsuhES9OMG5DSVHq9Z25okeQ/F6K0H+MJ54Cudox9CTytAqn5cYkU8vOe1pKdAyV
uCdqnfw9fIVzIWNRkw5IHOBsSPl/itU38SzNqu9zVrwq1F9BXm9gkrIDWYl2CF9a
0QIDAQAB
-----END PUBLIC KEY-----
"""
CLAIMS = {"iss": "foundation-be", "sub": "1", "iat": 1_700_000_000, "exp": 4_000_000_000, "jti": "x", "ver": 0}


def signed(**claims: Any) -> str:
    """A token with these claims changed; None removes one."""
    return jwt.encode({name: value for name, value in (CLAIMS | claims).items() if value is not None}, SECRET_KEY)


def part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def with_header(header: bytes) -> str:
    """A token of this header, whose signature would be right for the usual one."""
    _, payload, signature = signed().split(".")
    return f"{part(header)}.{payload}.{signature}"


def signed_with_a_public_key() -> str:
    """Key confusion: a MAC of which the key is a public key, which everybody has. jose itself refuses to make it."""
    text = f"{_head}.{_payload}"
    return f"{text}.{part(hmac.digest(PUBLIC_KEY, text.encode(), 'sha256'))}"


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
    "alg HS384": jwt.encode(CLAIMS, SECRET_KEY, algorithm="HS384"),
    "alg RS256": with_header(b'{"alg": "RS256"}'),
    "alg hs256": with_header(b'{"alg": "hs256"}'),
    "alg as a list": with_header(b'{"alg": ["HS256"]}'),
    "the key in the header": jwt.encode(
        CLAIMS, OTHER_KEY, headers={"jwk": {"kty": "oct", "k": part(OTHER_KEY.encode())}}
    ),
    "signed with the public key": signed_with_a_public_key(),
    "an extension that must be understood": jwt.encode(CLAIMS, SECRET_KEY, headers={"crit": ["b64"], "b64": False}),
    "expired": signed(iat=1_600_000_000, exp=1_600_000_001),
    "no exp": signed(exp=None),
    "exp as text": signed(exp="soon"),
    "exp as digits": signed(exp="4000000000"),
    "exp as a boolean": signed(exp=True),
    "exp as a list": signed(exp=[4_000_000_000]),
    "exp as a fraction": signed(exp=4_000_000_000.5),
    "exp huge": signed(exp=10**30),
    "exp of 5000 digits": jws.sign(json.dumps(CLAIMS).replace("4000000000", "4" * 2500).encode(), SECRET_KEY),
    "exp negative": signed(exp=-4_000_000_000),
    "exp as an object": signed(exp={"a": 1}),
    "exp infinite": signed(exp=float("inf")),
    "exp as a fraction of nothing": signed(exp=float("nan")),
    "not before the year 2096": signed(nbf=4_000_000_000),
    "nbf as text": signed(nbf="soon"),
    "issued in the year 2096": signed(iat=3_999_999_999),
    "no iat": signed(iat=None),
    "iat as text": signed(iat="1700000000"),
    "iat as a boolean": signed(iat=True),
    "iat huge": signed(iat=-(10**30)),
    "no issuer": signed(iss=None),
    "another issuer": signed(iss="https://evil.example.com"),
    "several issuers": signed(iss=["foundation-be"]),
    "for an audience": signed(aud="somebody else"),
    "no jti": signed(jti=None),
    "an empty jti": signed(jti=""),
    "jti as a number": jws.sign(json.dumps(CLAIMS | {"jti": 7}).encode(), SECRET_KEY),
    "jti with a NUL": signed(jti="x\x00"),
    "jti of half a pair": signed(jti="\ud800"),
    "jti too long": signed(jti="x" * 65),
    "no version": signed(ver=None),
    "another version": signed(ver=1),
    "version as text": signed(ver="0"),
    "version as a boolean": signed(ver=False),
    "version huge": signed(ver=2**31),
    "version negative": signed(ver=-1),
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
    "a header nested 2000 deep": with_header(b'{"alg":' + b"[" * 2000 + b"]" * 2000 + b"}"),
    "too long": signed(padding="x" * 10_000),
    "100 kB": signed(padding="x" * 100_000),
    "truncated": signed()[:-1],
    "truncated in the payload": signed()[: len(_head) + 20],
    "four parts": signed() + ".x",
}
AT_LEAST = {name for name in REFUSED if name != "another version"}
"""What is refused without a look at the database."""


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
    # Of the product's own: what earlier tests left behind may be said at this moment, when it is collected.
    assert [record for record in caplog.records if record.name.partition(".")[0] in PRODUCT and record.exc_info] == []
    logged = caplog.text + "".join(capfd.readouterr())
    secrets = [SECRET_KEY, _payload, _signature, *(token for token in REFUSED.values() if len(token) > 10)]
    assert [secret for secret in secrets if secret in logged] == []


@pytest.mark.parametrize("name", sorted(AT_LEAST))
def test_a_forged_token_is_refused(name: str) -> None:
    token = REFUSED[name]
    with pytest.raises(Unauthenticated) as refusal:
        tokens.verify(token, SECRET_KEY)
    assert token not in str(refusal.value)
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("user_id", [1, 7, 2**31 - 1])
def test_a_token_tells_whose_it_is_until_it_expires(user_id: int) -> None:
    now = clock.now()
    token = tokens.issue(user_id, SECRET_KEY, now, timedelta(seconds=30), jti="x", version=7)
    claims = tokens.verify(token, SECRET_KEY)
    assert claims == (user_id, "x", 7, now.replace(microsecond=0) + timedelta(seconds=30))
    with pytest.raises(Unauthenticated):
        tokens.verify(token, OTHER_KEY)
    old = tokens.issue(user_id, SECRET_KEY, now - timedelta(seconds=31), timedelta(seconds=30))
    with pytest.raises(Unauthenticated):
        tokens.verify(old, SECRET_KEY)


def test_a_clock_that_is_a_little_ahead_does_no_harm() -> None:
    ahead = clock.now() + timedelta(seconds=30)
    assert tokens.verify(tokens.issue(7, SECRET_KEY, ahead, timedelta(minutes=5)), SECRET_KEY).user_id == 7
    too_far_ahead = tokens.issue(7, SECRET_KEY, ahead + timedelta(minutes=1), timedelta(minutes=5))
    with pytest.raises(Unauthenticated):
        tokens.verify(too_far_ahead, SECRET_KEY)


def test_tokens_of_earlier_keys_are_taken_and_no_others() -> None:
    old = tokens.issue(7, OTHER_KEY, clock.now(), timedelta(minutes=5))
    assert tokens.verify(old, SECRET_KEY, OTHER_KEY).user_id == 7
    with pytest.raises(Unauthenticated):
        tokens.verify(old, SECRET_KEY, OTHER_KEY + "!")
    with pytest.raises(Unauthenticated):
        tokens.verify(old)


@pytest.mark.parametrize("key", ["1" * 40, json.dumps(["k" * 40]), json.dumps({"keys": ["k" * 40]}), "ü" * 20])
def test_a_key_may_be_any_text(key: str) -> None:
    token = tokens.issue(7, key, clock.now(), timedelta(minutes=5))
    assert tokens.verify(token, key).user_id == 7
    with pytest.raises(Unauthenticated):
        tokens.verify(jwt.encode(CLAIMS, "k" * 40), key)


def test_a_token_holds_no_more_than_it_needs_and_each_is_another() -> None:
    issued_at = datetime(2026, 1, 1, tzinfo=UTC)
    first, second = (tokens.issue(7, SECRET_KEY, issued_at, timedelta(minutes=30)) for _ in range(2))
    claims = jwt.get_unverified_claims(first)
    assert jwt.get_unverified_header(first) == {"alg": "HS256", "typ": "JWT"}
    assert set(claims) == {"iss", "sub", "iat", "exp", "jti", "ver"}
    assert claims["sub"] == "7"
    assert claims["exp"] - claims["iat"] == 30 * 60
    assert claims["jti"] != jwt.get_unverified_claims(second)["jti"]
