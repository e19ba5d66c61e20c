"""Limit the rate of attempts, for all processes together.

The database counts attempts in fixed windows: the first attempt opens a window. A window that ends later than its
length from now was opened by a wrong clock, and is over. Only hashes are stored.
"""

import hashlib
import math
from collections.abc import Iterable
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, case, delete, not_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.db import database
from app.errors import TooManyRequests
from models import Attempt

LONGEST = timedelta(days=90)
"""The longest duration of a window or a mark."""

_CLOCK_SKEW = timedelta(minutes=1)
"""How far the clocks of two servers may differ, plus the time that an attempt may wait for a lock."""

_SWEPT_AT_ONCE = 10


class Limit(NamedTuple):
    """Set the maximum attempts in a window; 0 for no limit."""

    key: str
    most: int
    window: timedelta


def key(*parts: str) -> str:
    """Hash the parts of a counter's name, so that they are unreadable."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


async def count(session: AsyncSession, limits: Iterable[Limit]) -> None:
    """Count an attempt before it is made, to limit concurrent ones.

    Raises:
        TooManyRequests: a limit is reached; the caller's transaction must roll back.
    """
    for limit in sorted(limits):  # always in the same order, to avoid deadlocks
        if limit.most > 0:
            await _count(session, limit)
    await _sweep(session)


async def _count(session: AsyncSession, limit: Limit) -> None:
    now = clock.now()
    statement = database.insert(session, Attempt).values(key=limit.key, count=1, expires_at=now + limit.window)
    is_over = _is_over(limit.window)
    statement = statement.on_conflict_do_update(
        index_elements=[Attempt.key],
        set_={
            "count": case((is_over, 1), else_=Attempt.count + 1),
            "expires_at": case((is_over, statement.excluded.expires_at), else_=Attempt.expires_at),
        },
        where=or_(is_over, Attempt.count < limit.most),
    )
    if await session.scalar(statement.returning(Attempt.count)) is None:
        expires_at = await session.scalar(select(Attempt.expires_at).where(Attempt.key == limit.key))
        left = (expires_at or now) - now
        raise TooManyRequests("Too many attempts: try again later.", max(1, math.ceil(left.total_seconds())))


def _is_over(length: timedelta) -> ColumnElement[bool]:
    now = clock.now()
    return or_(Attempt.expires_at <= now, Attempt.expires_at > now + length + _CLOCK_SKEW)


async def give_back(session: AsyncSession, limits: Iterable[Limit], *, reset: Limit) -> None:
    """Uncount an attempt that succeeded; set the count of `reset` to 0."""
    for limit in sorted({*limits, reset}):
        mine = Attempt.key == limit.key
        if limit == reset:
            await session.execute(delete(Attempt).where(mine))
        else:
            await session.execute(update(Attempt).where(mine, Attempt.count > 0).values(count=Attempt.count - 1))


async def remember(session: AsyncSession, name: str, time: timedelta) -> None:
    """Store a mark for a duration that begins now."""
    statement = database.insert(session, Attempt).values(key=name, count=1, expires_at=clock.now() + time)
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[Attempt.key], set_={"expires_at": statement.excluded.expires_at}
        )
    )


async def remembers(session: AsyncSession, name: str, time: timedelta) -> bool:
    """Return whether there is such a mark, stored with this `time`."""
    mine = (Attempt.key == name, not_(_is_over(time)))
    return await session.scalar(select(Attempt.key).where(*mine)) is not None


async def _sweep(session: AsyncSession) -> None:
    """Remove some expired rows: more than one attempt adds."""
    over = select(Attempt.key).where(_is_over(LONGEST)).limit(_SWEPT_AT_ONCE)
    locked = over.with_for_update(skip_locked=True)
    await session.execute(delete(Attempt).where(Attempt.key.in_(locked)))
