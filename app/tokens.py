"""Access tokens. The only module that knows python-jose."""

import secrets
from datetime import datetime, timedelta

from jose import jwt

from app.errors import Unauthenticated

ALGORITHM = "HS256"
MAX_TOKEN_LENGTH = 4096
_MAX_ID = 2**31 - 1
_REQUIRED = {"require_exp": True, "require_iat": True, "require_sub": True}


def issue(user_id: int, key: str, issued_at: datetime, lifetime: timedelta) -> str:
    """A signed token whose `sub` is the user's id."""
    claims = {
        "sub": str(user_id),
        "iat": int(issued_at.timestamp()),
        "exp": int((issued_at + lifetime).timestamp()),
        "jti": secrets.token_urlsafe(12),
    }
    return jwt.encode(claims, key, algorithm=ALGORITHM)


def verify(token: str, key: str) -> int:
    """The id of the user to whom a token was issued; does not ask the database.

    Raises:
        Unauthenticated: whatever is wrong with the token.
    """
    try:
        if len(token) > MAX_TOKEN_LENGTH:
            raise ValueError("too long")
        claims = jwt.decode(token, key, algorithms=[ALGORITHM], options=_REQUIRED)
        subject = claims["sub"]
        if not (subject.isascii() and subject.isdigit() and 0 < int(subject) <= _MAX_ID):
            raise ValueError("not an id")
    except Exception:  # jose raises RecursionError, TypeError, OverflowError and more on forged tokens
        raise Unauthenticated("The access token is missing, not valid, or expired.") from None
    return int(subject)
