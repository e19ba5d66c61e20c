"""How often something may be tried: counted in the database, so that limits hold for all processes together.

Windows are fixed: the first attempt opens one, and after its end nothing is left. A window whose end lies further ahead
than its length was opened by a clock that has been corrected since: that window is over. Only hashes are stored.
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
"""No window and no mark lasts longer."""

_CLOCK_SKEW = timedelta(minutes=1)
"""How far the clocks of two servers may differ, with the time that an attempt may wait for a lock."""

_SWEPT_AT_ONCE = 10


class Limit(NamedTuple):
    """The most attempts in a window; 0 for any number."""

    key: str
    most: int
    window: timedelta


def key(*parts: str) -> str:
    """A name for what is counted, from which the parts cannot be read."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


async def count(session: AsyncSession, limits: Iterable[Limit]) -> None:
    """Counts an attempt, before it is made: of simultaneous ones no more get through than of successive ones.

    Raises:
        TooManyRequests: a limit is reached. The caller's transaction must then be rolled back.
    """
    for limit in sorted(limits):  # always in the same order, so that nobody waits in a circle
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
        raise TooManyRequests("Too many attempts; try again later.", max(1, math.ceil(left.total_seconds())))


def _is_over(length: timedelta) -> ColumnElement[bool]:
    now = clock.now()
    return or_(Attempt.expires_at <= now, Attempt.expires_at > now + length + _CLOCK_SKEW)


async def give_back(session: AsyncSession, limits: Iterable[Limit], *, reset: Limit) -> None:
    """Give one attempt of each limit back, because it succeeded; set the count of `reset` to 0."""
    for limit in sorted({*limits, reset}):
        mine = Attempt.key == limit.key
        if limit == reset:
            await session.execute(delete(Attempt).where(mine))
        else:
            await session.execute(update(Attempt).where(mine, Attempt.count > 0).values(count=Attempt.count - 1))


async def remember(session: AsyncSession, name: str, time: timedelta) -> None:
    """Keeps a mark for a time, beginning now."""
    statement = database.insert(session, Attempt).values(key=name, count=1, expires_at=clock.now() + time)
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[Attempt.key], set_={"expires_at": statement.excluded.expires_at}
        )
    )


async def remembers(session: AsyncSession, name: str, time: timedelta) -> bool:
    """Return whether there is such a mark; `time` is the one it was made with."""
    mine = (Attempt.key == name, not_(_is_over(time)))
    return await session.scalar(select(Attempt.key).where(*mine)) is not None


async def _sweep(session: AsyncSession) -> None:
    """Remove some of what is over: more than one attempt adds, so that the table stays small."""
    over = select(Attempt.key).where(_is_over(LONGEST)).limit(_SWEPT_AT_ONCE)
    locked = over.with_for_update(skip_locked=True)
    await session.execute(delete(Attempt).where(Attempt.key.in_(locked)))
