"""Hash and verify passwords; the only module that imports passlib.

New hashes are argon2id with the parameters of the OWASP Password Storage Cheat Sheet (19 MiB, t=2, p=1). The earlier
backend's bcrypt hashes are verified, and replaced at login. While that backend runs on the same database, hashes are
bcrypt, because it fails on argon2.
"""

import asyncio
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from passlib.context import CryptContext

from app.security import frequency_lists

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
_earlier_context = CryptContext(schemes=["bcrypt"], bcrypt__rounds=12)
_unknown_users_hash = _context.hash("a password that no user has")
# A thread keeps the 19 MiB of its last hash. Separate threads, one for each core, bound that memory.
_threads = ThreadPoolExecutor(os.cpu_count() or 1, "hashing")


class Verdict(NamedTuple):
    """Report whether the password was right, and a better hash to store."""

    valid: bool
    new_hash: str | None


async def hash_password(password: str, *, as_bcrypt: bool = False) -> str:
    """Return an argon2id hash, or a bcrypt hash, computed in a thread.

    There is one thread per core. The earlier backend verifies bcrypt only. A password for a bcrypt hash must pass
    `fits_bcrypt`.
    """
    context = _earlier_context if as_bcrypt else _context
    return await asyncio.get_running_loop().run_in_executor(_threads, context.hash, password)


async def verify(password: str, stored: str | None, *, as_bcrypt: bool = False) -> Verdict:
    """Check a password; without a stored hash work equally long and fail.

    The verdict's new hash is argon2id, or bcrypt if `as_bcrypt`. Never raises.
    """
    return await asyncio.get_running_loop().run_in_executor(_threads, _verify, password, stored, as_bcrypt)


def _verify(password: str, stored: str | None, as_bcrypt: bool) -> Verdict:
    if stored is None:
        _context.verify(password, _unknown_users_hash)
        return Verdict(False, None)
    is_bcrypt = _context.identify(stored) == "bcrypt"
    secret: str | bytes = password
    if is_bcrypt:  # bcrypt ignores further bytes, and its library now refuses them
        secret = password.encode()[:_MAX_BCRYPT_BYTES]
    try:
        valid = _context.verify(secret, stored)
    except ValueError:  # the hash is damaged, or a bcrypt password contains a NUL
        return Verdict(False, None)
    if not valid:
        return Verdict(False, None)
    if as_bcrypt:
        return Verdict(True, None if is_bcrypt or not fits_bcrypt(password) else _earlier_context.hash(password))
    return Verdict(True, _context.hash(password) if _context.needs_update(stored) else None)


def fits_bcrypt(password: str) -> bool:
    """Return whether bcrypt hashes all of a password."""
    return len(password.encode()) <= _MAX_BCRYPT_BYTES and "\0" not in password


def weakness(password: str, *about: str) -> str | None:
    """Return why a new password is refused, or None.

    The rules are those of NIST SP 800-63B, section 3.1.1.2: none about characters. The schema checks the length.
    `about` is the user's name and address, which an attacker may know.
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
    return frozenset(word for word in frequency_lists.load()["passwords"] if len(word) >= MIN_LENGTH)
