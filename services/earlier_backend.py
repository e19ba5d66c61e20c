"""Keep the database usable for the earlier backend's processes.

Revision 0014 stores the fact, and creates the triggers, where a PostgreSQL database belonged to the earlier backend.
Every statement reads the fact from the database, so that no process acts on an outdated copy.
"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import database
from app.db.database import Database
from app.errors import InvalidRequest
from app.security import passwords
from services import stored_settings

_SETTING = "earlier_backend"
_TRIGGERS = {
    "foundation_old_columns": "messages",
    "foundation_old_months": "user_monthly_token_usage",
    "foundation_old_deletions": "users",
    "foundation_old_feedback": "messages",
}


async def may_run(session: AsyncSession) -> bool:
    """Return whether processes of the earlier backend may use this database."""
    return await stored_settings.read(session, _SETTING) is not None


async def hash_password(database: Database, password: str, field: str = "password") -> str:
    """Hash a new password for every backend on this database.

    Raises:
        InvalidRequest: the earlier backend may run, and would ignore the end of the password.
    """
    as_bcrypt = await database.read(may_run)
    if as_bcrypt and not passwords.fits_bcrypt(password):
        reason = "This password cannot be used: it has more than 72 bytes, and an earlier backend may still run."
        raise InvalidRequest({field: [reason]}, reason)
    return await passwords.hash_password(password, as_bcrypt=as_bcrypt)


async def finish(session: AsyncSession) -> None:
    """Store that the earlier backend's processes are gone; remove the triggers.

    Repeatable.
    """
    if database.is_sqlite(session) or not await may_run(session):
        return
    for name, table in _TRIGGERS.items():
        await session.execute(text(f"DROP TRIGGER IF EXISTS {name} ON {table}"))
        await session.execute(text(f"DROP FUNCTION IF EXISTS {name}()"))
    await stored_settings.remove(session, _SETTING)
