"""Sign access tokens, and make secrets that are stored as hashes.

The only module that imports python-jose.
"""

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
"""How far in the future a token may have been issued, since the clocks of servers differ."""

_MAX_ID = 2**31 - 1
_MAX_JTI_LENGTH = 64
_REQUIRED = {f"require_{claim}": True for claim in ("exp", "iat", "sub", "jti", "iss")}


class Claims(NamedTuple):
    """Hold the claims of a token: user, id, token version, and expiry."""

    user_id: int
    jti: str
    version: int
    expires_at: datetime


def issue(
    user_id: int, key: str, issued_at: datetime, lifetime: timedelta, *, jti: str | None = None, version: int = 0
) -> str:
    """Return a signed token whose `sub` is the user's id."""
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
    """Return the claims of a token signed with one of the keys.

    Does not query the database.

    Raises:
        Unauthenticated: the token is invalid for any reason.
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
    if "crit" in jwt.get_unverified_header(token):  # RFC 7515, section 4.1.11: unknown extensions are refused
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
    """Build the key here, since jose interprets JSON texts as key sets."""
    return jwk.construct(text, ALGORITHM)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_ID:
        raise ValueError("not a version")
    return value


def _instant(value: Any) -> datetime:
    if type(value) is not int:  # jose accepts texts and booleans as numbers
        raise ValueError("not an instant")
    return datetime.fromtimestamp(value, UTC)


def new_secret(entropy_bytes: int = 32) -> str:
    """Return an unguessable random text that is safe in URLs."""
    return secrets.token_urlsafe(entropy_bytes)


def hash_secret(secret: str) -> str:
    """Return the hash of a random secret, for storage.

    SHA-256 is enough, since a random secret cannot be guessed like a password.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def new_owned_secret(prefix: str, user_id: int) -> str:
    """Return a secret that contains the id of its user."""
    return f"{prefix}_{user_id}_{new_secret()}"


def owner_of(prefix: str, secret: str) -> int | None:
    """Return the user id that a secret names, or None."""
    found, _, rest = secret.partition("_")
    digits = rest.partition("_")[0]
    if found != prefix or not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(_MAX_ID))):
        return None
    return int(digits) if int(digits) <= _MAX_ID else None
