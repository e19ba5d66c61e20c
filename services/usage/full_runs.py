"""Record whether a full run has adopted an earlier backend's messages."""

from zoneinfo import ZoneInfo

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from models import Message
from models.messages import LOWEST_ID
from services import stored_settings
from services.usage import time_zone

_NAME, _BEGUN = "last_full_backfill", "begun"
_OLD_MONTHS, _DUE = "old_months", "due"


async def is_due(session: AsyncSession) -> bool:
    """Return whether messages of an earlier backend still need a full run.

    A full run that was interrupted is still due.
    """
    noted = await stored_settings.read(session, _NAME)
    if noted is not None:
        return noted == _BEGUN
    old = select(Message.id).where(Message.id >= LOWEST_ID, Message.user_id.is_(None)).limit(1)
    return await session.scalar(old) is not None


async def note_begin(session: AsyncSession, zone: ZoneInfo) -> None:
    """Store that a run has begun, if one is due.

    Raises:
        ConfigurationError: the messages were dated in another time zone.
    """
    await time_zone.check(session, zone)
    if await is_due(session):  # also if a run adopted every row and was interrupted later
        await stored_settings.store(session, _NAME, _BEGUN)


async def note_end(session: AsyncSession) -> None:
    """Store that a run over all users and months has ended."""
    await stored_settings.store(session, _NAME, clock.now().isoformat())
    if await has_old_months(session):
        await stored_settings.store(session, _OLD_MONTHS, clock.now().isoformat())


async def has_old_months(session: AsyncSession) -> bool:
    """Return whether months may hold usage without messages.

    An earlier backend deleted messages after it had counted them.
    """
    return await stored_settings.read(session, _OLD_MONTHS) == _DUE
