"""Log in by password, rate-limited without locking out the account's owner."""

import asyncio
import math
import os
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import NamedTuple
from weakref import WeakValueDictionary

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.database import Database, Session
from app.errors import Conflict, NotFound, Unauthenticated
from app.security import passwords
from models import User
from models.users import IS_ACTIVE, TOKEN_VERSION
from services import earlier_backend
from services.accounts import attempts, sessions, usernames
from services.accounts.attempts import Limit
from services.accounts.sessions import Credentials

FAILED_LOGIN_SECONDS = 0.5
"""A failed login takes a multiple of this time, so that its duration does not reveal the cause."""

_CHECKS_REMEMBERED = 100

ADDRESS_IS_KNOWN_FOR = attempts.LONGEST


class Limits(NamedTuple):
    """Limit the failed logins within a window; 0 for no limit.

    `account` applies to one account from one address. `account_total` applies to one account from all addresses, except
    those from which the account has been used.
    """

    account: int
    account_total: int
    address: int
    window: timedelta


async def credentials(session: AsyncSession, username: str) -> Credentials | None:
    """Return the credentials of a username; None for an unknown one.

    Names in old databases need not be normalized: an exact match takes precedence over a normalized one.
    """
    columns = (User.id, User.hashed_password, IS_ACTIVE, TOKEN_VERSION)
    names = (username, usernames.normalize(username))
    statement = select(*columns).where(User.username.in_(names)).order_by((User.username == username).desc()).limit(1)
    row = (await session.execute(statement)).one_or_none()
    if row is None:
        return None
    return Credentials(row.id, row.hashed_password, bool(row.is_active), row.token_version)


async def replace_hash(session: AsyncSession, found: Credentials, new_hash: str) -> None:
    """Replace the hash of the same password, unless it has changed."""
    await session.execute(
        update(User)
        .where(User.id == found.user_id, User.hashed_password == found.hashed_password)
        .values(hashed_password=new_hash)
    )


async def change_password(session: AsyncSession, found: Credentials, new_hash: str) -> int:
    """Replace the password, and end every login of the user.

    Returns:
        The version of the tokens that are accepted from now on.

    Raises:
        Conflict: the password was changed concurrently.
    """
    unchanged = (User.id == found.user_id, User.hashed_password == found.hashed_password)
    changed = update(User).where(*unchanged).values(hashed_password=new_hash).returning(User.id)
    if await session.scalar(changed) is None:
        raise Conflict("The password was changed by another request: log in again.")
    return await sessions.end_all(session, found.user_id)


async def set_password(session: AsyncSession, user_id: int, new_hash: str) -> None:
    """Store the hash of a new password, and end every login.

    Raises:
        NotFound: the user was deleted concurrently.
    """
    changed = update(User).where(User.id == user_id).values(hashed_password=new_hash).returning(User.id)
    if await session.scalar(changed) is None:
        raise NotFound("There is no such user.")
    await sessions.end_all(session, user_id)


class Logins:
    """Check passwords: one per account at a time, and one per core.

    An attempt counts as failed until it has succeeded, also for other processes. So attempts that wait here are not
    counted yet.
    """

    def __init__(self, database: Database, limits: Limits) -> None:
        self._database = database
        self._limits = limits
        self._slots = asyncio.Semaphore(os.cpu_count() or 1)
        self._failed_checks: deque[float] = deque(maxlen=_CHECKS_REMEMBERED)
        self._queues: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def check(self, username: str, password: str, address: str) -> Credentials:
        """Check a password, replace an old hash, and return the credentials.

        No transaction is open while the password is checked.

        Args:
            username: the text of the request.
            password: the text of the request.
            address: the caller's address.

        Raises:
            Unauthenticated: the user is unknown or inactive, or the password wrong: all after the same time.
            TooManyRequests: too many attempts failed.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        attempt = _Attempt.of(username, address, self._limits)
        async with self._passing(attempt.of_account.key):
            found, counted, as_bcrypt = await self._database.transaction(
                lambda session: attempt.begin(session, username)
            )
            checking = loop.time()
            verdict = await passwords.verify(password, found.hashed_password if found else None, as_bcrypt=as_bcrypt)
            if found is not None and verdict.valid and found.is_active:
                await self._settle(attempt, counted, found, verdict.new_hash)
                return found._replace(hashed_password=verdict.new_hash or found.hashed_password)
            self._failed_checks.append(loop.time() - checking)
        await asyncio.sleep(self._left(loop.time() - started))
        raise Unauthenticated("Wrong username or password.")

    def _left(self, elapsed: float) -> float:
        """Return the seconds by which to delay a failed login.

        Every failure takes as long as the slowest recent check, rounded up to `FAILED_LOGIN_SECONDS`. An old hash takes
        ten times as long as a new one. On a busy machine that exceeds the unit: then all failures take two units. They
        never take more, so that one slow check does not delay all logins.
        """
        slowest = max(self._failed_checks, default=0.0)
        least = max(elapsed, min(slowest, 2 * FAILED_LOGIN_SECONDS))
        return math.ceil(least / FAILED_LOGIN_SECONDS) * FAILED_LOGIN_SECONDS - elapsed

    async def _settle(
        self, attempt: "_Attempt", counted: Sequence[Limit], found: Credentials, new_hash: str | None
    ) -> None:
        async def work(session: Session) -> None:
            await attempts.give_back(session, counted, reset=attempt.of_account)
            await attempts.remember(session, attempt.known, ADDRESS_IS_KNOWN_FOR)
            if new_hash is not None:
                await replace_hash(session, found, new_hash)

        await self._database.transaction(work, repeatable=True)

    @asynccontextmanager
    async def limiting_resets(self, owner: str, address: str) -> AsyncIterator[None]:
        """Count an attempt to reset a password; uncount it on success.

        Args:
            owner: the user whom the token names.
            address: the caller's address.

        Raises:
            TooManyRequests: too many attempts failed.
        """
        limits = self._limits
        counted = [
            Limit(attempts.key("password reset", owner, address), limits.account, limits.window),
            Limit(attempts.key("password reset from address", address), limits.address, limits.window),
        ]
        await self._database.transaction(lambda session: attempts.count(session, counted))
        yield
        await self._database.transaction(
            lambda session: attempts.give_back(session, counted, reset=counted[0]), repeatable=True
        )

    @asynccontextmanager
    async def _passing(self, account: str) -> AsyncIterator[None]:
        queue = self._queues.setdefault(account, asyncio.Lock())
        async with queue, self._slots:
            yield


class _Attempt(NamedTuple):
    of_account: Limit
    of_account_total: Limit
    of_address: Limit
    known: str

    @classmethod
    def of(cls, username: str, address: str, limits: Limits) -> "_Attempt":
        name = usernames.key(username)
        return cls(
            Limit(attempts.key("login", name, address), limits.account, limits.window),
            Limit(attempts.key("login of account", name), limits.account_total, limits.window),
            Limit(attempts.key("login from address", address), limits.address, limits.window),
            attempts.key("known address", name, address),
        )

    async def begin(self, session: Session, username: str) -> tuple[Credentials | None, Sequence[Limit], bool]:
        """Count the attempt.

        Returns:
            The credentials, the counted limits, and whether to keep bcrypt hashes.
        """
        counted = [self.of_account, self.of_address]
        if not await attempts.remembers(session, self.known, ADDRESS_IS_KNOWN_FOR):
            counted.append(self.of_account_total)
        await attempts.count(session, counted)
        return await credentials(session, username), counted, await earlier_backend.may_run(session)
