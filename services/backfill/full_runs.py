"""Full runs: whether the messages of an earlier backend were all taken over once."""

from zoneinfo import ZoneInfo

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from models import Message
from services import stored_settings
from services.backfill import adoption
from services.usage import time_zone

_NAME, _BEGUN = "last_full_backfill", "begun"
_OLD_MONTHS, _DUE = "old_months", "due"


async def is_due(session: AsyncSession) -> bool:
    """Whether there are messages of an earlier backend, and nobody ran the script over all of them yet."""
    noted = await stored_settings.read(session, _NAME)
    if noted is not None:
        return noted == _BEGUN
    old = select(Message.id).where(Message.id >= adoption.LOWEST_ID, Message.user_id.is_(None)).limit(1)
    return await session.scalar(old) is not None


async def note_begin(session: AsyncSession, zone: ZoneInfo) -> None:
    """Notes that a run has begun, where one is due.

    Raises:
        ConfigurationError: the messages were dated by another zone.
    """
    await time_zone.check(session, zone)
    if await is_due(session):  # also when all is adopted, and the rest was broken off
        await stored_settings.store(session, _NAME, _BEGUN)


async def note_end(session: AsyncSession) -> None:
    """Note that a run over everything has come to its end."""
    await stored_settings.store(session, _NAME, clock.now().isoformat())
    if await has_old_months(session):
        await stored_settings.store(session, _OLD_MONTHS, clock.now().isoformat())


async def has_old_months(session: AsyncSession) -> bool:
    """Whether months may hold what an earlier backend had counted and whose messages it had deleted."""
    return await stored_settings.read(session, _OLD_MONTHS) == _DUE
