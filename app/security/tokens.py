"""Access tokens, and the secrets that are stored only as hashes. The only module that knows python-jose."""

import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from jose import jwk, jwt
from jose.backends.base import Key

from app import clock
from app.errors import Unauthenticated

ALGORITHM = "HS256"
ISSUER = "foundation-be"
MAX_TOKEN_LENGTH = 4096
CLOCK_SKEW = timedelta(seconds=60)
"""So far in the future a token may have been issued: by another server, whose clock is not quite this one's."""

_MAX_ID = 2**31 - 1
_MAX_JTI_LENGTH = 64
_REQUIRED = {f"require_{claim}": True for claim in ("exp", "iat", "sub", "jti", "iss")}


class Claims(NamedTuple):
    """What a token says: whose it is, its name, which version of its user's tokens it is of, and when it expires."""

    user_id: int
    jti: str
    version: int
    expires_at: datetime


def issue(
    user_id: int, key: str, issued_at: datetime, lifetime: timedelta, *, jti: str | None = None, version: int = 0
) -> str:
    """A signed token whose `sub` is the user's id."""
    claims = {
        "iss": ISSUER,
        "sub": str(user_id),
        "iat": int(issued_at.timestamp()),
        "exp": int((issued_at + lifetime).timestamp()),
        "jti": jti or new_secret(12),
        "ver": version,
    }
    return jwt.encode(claims, _key(key), algorithm=ALGORITHM)


def verify(token: str, *keys: str) -> Claims:
    """What a token says that was signed with one of the keys; does not ask the database.

    Raises:
        Unauthenticated: whatever is wrong with the token.
    """
    for key in keys:
        try:
            return _verify(token, key)
        except Exception:  # noqa: S112  # jose raises RecursionError, TypeError, OverflowError and more on forged tokens
            continue
    raise Unauthenticated("The access token is missing, not valid, or expired.")


def _verify(token: str, key: str) -> Claims:
    if len(token) > MAX_TOKEN_LENGTH:
        raise ValueError("too long")
    claims = jwt.decode(token, _key(key), algorithms=[ALGORITHM], issuer=ISSUER, options=_REQUIRED)
    if "crit" in jwt.get_unverified_header(token):  # RFC 7515, section 4.1.11: what is not understood is refused
        raise ValueError("an extension that is not known")
    jti, subject = claims["jti"], claims["sub"]
    if not (subject.isascii() and subject.isdigit() and 0 < int(subject) <= _MAX_ID):
        raise ValueError("not an id")
    if not (isinstance(jti, str) and 0 < len(jti) <= _MAX_JTI_LENGTH and jti.isascii() and jti.isprintable()):
        raise ValueError("not a jti")
    if _instant(claims["iat"]) > clock.now() + CLOCK_SKEW:
        raise ValueError("issued in the future")
    return Claims(int(subject), jti, _whole(claims["ver"]), _instant(claims["exp"]))


def _key(text: str) -> Key:
    """Made here, since jose, when it verifies, takes a text that is JSON for a set of keys."""
    return jwk.construct(text, ALGORITHM)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_ID:
        raise ValueError("not a version")
    return value


def _instant(value: Any) -> datetime:
    if type(value) is not int:  # jose takes texts and booleans for numbers, too
        raise ValueError("not an instant")
    return datetime.fromtimestamp(value, UTC)


def new_secret(entropy_bytes: int = 32) -> str:
    """A random text that nobody can guess, safe in URLs."""
    return secrets.token_urlsafe(entropy_bytes)


def hash_secret(secret: str) -> str:
    """What is stored of a random secret. SHA-256 alone is enough: there is nothing to guess, as with passwords."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_owned_secret(prefix: str, user_id: int) -> str:
    """A secret that says whose it is, so that it can be found among that user's alone."""
    return f"{prefix}_{user_id}_{new_secret()}"


def owner_of(prefix: str, secret: str) -> int | None:
    """The id of the user whose secret this says to be; None for what is no such secret."""
    found, _, rest = secret.partition("_")
    digits = rest.partition("_")[0]
    if found != prefix or not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(_MAX_ID))):
        return None
    return int(digits) if int(digits) <= _MAX_ID else None
