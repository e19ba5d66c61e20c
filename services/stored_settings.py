"""Read and store the settings that the data depends on."""

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import database
from models import FoundationSetting


async def read(session: AsyncSession, name: str) -> str | None:
    """Return the value of a setting; None if it was never stored."""
    return await session.scalar(select(FoundationSetting.value).where(FoundationSetting.name == name))


async def store(session: AsyncSession, name: str, value: str) -> None:
    """Store a setting; concurrent writers do not conflict."""
    statement = database.insert(session, FoundationSetting).values(name=name, value=value)
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[FoundationSetting.name], set_={"value": statement.excluded.value}
        )
    )


async def remove(session: AsyncSession, name: str) -> None:
    """Remove a setting, if it was stored."""
    await session.execute(delete(FoundationSetting).where(FoundationSetting.name == name))
