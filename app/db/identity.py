"""Check that several URLs name the same PostgreSQL database."""

import logging

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import failures
from app.db.database import Database
from app.db.urls import Target
from app.errors import ConfigurationError

logger = logging.getLogger(__name__)

# A streaming replica has the identifier of its primary.
_IDENTITY = text("SELECT current_database(), system_identifier FROM pg_control_system()")


async def check(database: Database, other: Target, setting: str) -> None:
    """Refuse a setting whose URL names another database.

    If the other server does not answer, only log it: this server must start while a replica is down.

    Raises:
        ConfigurationError: they are different databases.
    """
    expected = await database.read(_of)
    opened = Database.open(other)
    try:
        found = await opened.read(_of)
    except failures.FAILURES as error:
        logger.warning("%s: %s", setting, failures.describe(error))
        return
    finally:
        await opened.close()
    if found != expected:
        raise ConfigurationError(f"{setting} names another database than DATABASE_URL")


async def _of(session: AsyncSession) -> tuple[str, int]:
    name, system = (await session.execute(_IDENTITY)).one()
    return name, system
