"""Check that several URLs name the same PostgreSQL database."""

import logging
from dataclasses import replace

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import failures, postgresql_connections
from app.db.database import Database
from app.db.urls import Target
from app.errors import ConfigurationError

logger = logging.getLogger(__name__)

_IDENTITY = text(postgresql_connections.IDENTITY)


async def check(database: Database, other: Target, setting: str) -> None:
    """Refuse a setting whose URL names another database.

    If the other server does not answer, only log it: this server must start while a replica is down.

    Raises:
        ConfigurationError: they are different databases.
    """
    expected = await database.read(_of)
    opened = Database.open(replace(other, replica_of=""))  # whose own check would be an outage
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
