"""Who is it? Passwords, checked under limits that stop guessing and do not lock out whom the guessing is about."""

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
from services.accounts import attempts, sessions, usernames
from services.accounts.attempts import Limit
from services.accounts.sessions import Credentials

FAILED_LOGIN_SECONDS = 0.5
"""A failed login takes a whole multiple of this, so that its time does not tell why it failed."""

_CHECKS_REMEMBERED = 100

ADDRESS_IS_KNOWN_FOR = attempts.LONGEST


class Limits(NamedTuple):
    """How many failed logins within a window; 0 for any number.

    `account` is of one account from one address, `account_total` of one account from all addresses but those that the
    account has been used from.
    """

    account: int
    account_total: int
    address: int
    window: timedelta


async def credentials(session: AsyncSession, username: str) -> Credentials | None:
    """What a login of this username is checked against; None where there is no such user.

    Names of old databases may be written in any way: such a name is meant before the one it is normalized to.
    """
    columns = (User.id, User.hashed_password, IS_ACTIVE, TOKEN_VERSION)
    names = (username, usernames.normalize(username))
    statement = select(*columns).where(User.username.in_(names)).order_by((User.username == username).desc()).limit(1)
    row = (await session.execute(statement)).one_or_none()
    if row is None:
        return None
    return Credentials(row.id, row.hashed_password, bool(row.is_active), row.token_version)


async def replace_hash(session: AsyncSession, found: Credentials, new_hash: str) -> None:
    """Stores a newer hash of the same password, unless the password was changed meanwhile."""
    await session.execute(
        update(User)
        .where(User.id == found.user_id, User.hashed_password == found.hashed_password)
        .values(hashed_password=new_hash)
    )


async def change_password(session: AsyncSession, found: Credentials, new_hash: str) -> int:
    """Stores the hash of a new password, and ends every login of the user.

    Returns:
        The version of the tokens that are taken from now on.

    Raises:
        Conflict: the password was changed meanwhile.
    """
    unchanged = (User.id == found.user_id, User.hashed_password == found.hashed_password)
    changed = update(User).where(*unchanged).values(hashed_password=new_hash).returning(User.id)
    if await session.scalar(changed) is None:
        raise Conflict("The password was changed by somebody else at this moment.")
    return await sessions.end_all(session, found.user_id)


async def set_password(session: AsyncSession, user_id: int, new_hash: str) -> None:
    """Store the hash of a new password, and end every login of the user.

    Raises:
        NotFound: the user was deleted in the meantime.
    """
    changed = update(User).where(User.id == user_id).values(hashed_password=new_hash).returning(User.id)
    if await session.scalar(changed) is None:
        raise NotFound("There is no such user any more.")
    await sessions.end_all(session, user_id)


class Logins:
    """Checks passwords, in this process one at a time of an account and one at a time a core.

    An attempt counts as failed until it has succeeded, also for other processes: so of those that wait here, none does.
    """

    def __init__(self, database: Database, limits: Limits) -> None:
        self._database = database
        self._limits = limits
        self._slots = asyncio.Semaphore(os.cpu_count() or 1)
        self._failed_checks: deque[float] = deque(maxlen=_CHECKS_REMEMBERED)
        self._queues: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def check(self, username: str, password: str, address: str) -> Credentials:
        """The credentials of whom this password proves to be the user; an old hash of it is replaced.

        Args:
            username: as it was given; no transaction is open meanwhile.
            password: as it was given.
            address: where the attempt comes from.

        Raises:
            Unauthenticated: unknown user, wrong password, or an account that is not active: alike, after the same time.
            TooManyRequests: too many attempts failed.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        attempt = _Attempt.of(username, address, self._limits)
        async with self._passing(attempt.of_account.key):
            found, counted = await self._database.transaction(lambda session: attempt.begin(session, username))
            checking = loop.time()
            verdict = await passwords.verify(password, found.hashed_password if found else None)
            if found is not None and verdict.valid and found.is_active:
                await self._settle(attempt, counted, found, verdict.new_hash)
                return found._replace(hashed_password=verdict.new_hash or found.hashed_password)
            self._failed_checks.append(loop.time() - checking)
        await asyncio.sleep(self._left(loop.time() - started))
        raise Unauthenticated("Wrong username or password.")

    def _left(self, elapsed: float) -> float:
        """How long a failed login has yet to take: as if its check had been as slow as the slowest of late.

        Checking one of the old hashes takes ten times as long as checking a new one, on a busy machine also longer than
        the time that every failure takes: then all take twice that time. No longer, lest one that was held up by
        something else makes everybody wait.
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
        """Count an attempt to reset a password, and give it back where nothing is raised.

        Args:
            owner: whose password it says to be.
            address: where the attempt comes from.

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

    async def begin(self, session: Session, username: str) -> tuple[Credentials | None, Sequence[Limit]]:
        counted = [self.of_account, self.of_address]
        if not await attempts.remembers(session, self.known, ADDRESS_IS_KNOWN_FOR):
            counted.append(self.of_account_total)
        await attempts.count(session, counted)
        return await credentials(session, username), counted
