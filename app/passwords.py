"""Password hashes. The only module that knows passlib.

New hashes are argon2id with the parameters of the OWASP Password Storage Cheat Sheet (19 MiB, t=2, p=1). Hashes of
bcrypt, which the earlier backend wrote, are still verified, and replaced at login.
"""

import os
from typing import NamedTuple

import anyio
from anyio import to_thread
from anyio.lowlevel import RunVar
from passlib.context import CryptContext

_MAX_BCRYPT_BYTES = 72

_context = CryptContext(
    schemes=["argon2", "bcrypt"],
    deprecated=["bcrypt"],
    argon2__type="ID",
    argon2__memory_cost=19_456,
    argon2__time_cost=2,
    argon2__parallelism=1,
)
_unknown_users_hash = _context.hash("a password that nobody has")
_hashing_slots: RunVar[anyio.CapacityLimiter] = RunVar("hashing_slots")


class Verdict(NamedTuple):
    """Whether the password was right, and the hash that should replace the stored one, if any."""

    valid: bool
    new_hash: str | None


async def hash_password(password: str) -> str:
    """A new argon2id hash, computed off the event loop, at most one a core at a time."""
    return await to_thread.run_sync(_context.hash, password, limiter=_limiter())


async def verify(password: str, stored: str | None) -> Verdict:
    """Checks a password; with no stored hash (an unknown user) does the same work and says no. Never raises."""
    return await to_thread.run_sync(_verify, password, stored, limiter=_limiter())


def _verify(password: str, stored: str | None) -> Verdict:
    if stored is None:
        _context.verify(password, _unknown_users_hash)
        return Verdict(False, None)
    secret: str | bytes = password
    if _context.identify(stored) == "bcrypt":  # bcrypt never read more, and its library now refuses more
        secret = password.encode()[:_MAX_BCRYPT_BYTES]
    try:
        valid = _context.verify(secret, stored)
    except ValueError:  # a damaged hash, or a NUL within a bcrypt password
        return Verdict(False, None)
    return Verdict(valid, _context.hash(password) if valid and _context.needs_update(stored) else None)


def _limiter() -> anyio.CapacityLimiter:
    try:
        return _hashing_slots.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(os.cpu_count() or 1)
        _hashing_slots.set(limiter)
        return limiter
