"""The settings that lie in the database: what its data itself was made with."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import database
from models import FoundationSetting


async def read(session: AsyncSession, name: str) -> str | None:
    """The value of a setting; None where it was never stored."""
    return await session.scalar(select(FoundationSetting.value).where(FoundationSetting.name == name))


async def store(session: AsyncSession, name: str, value: str) -> None:
    """Stores a setting, also while others store it."""
    statement = database.insert(session, FoundationSetting).values(name=name, value=value)
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[FoundationSetting.name], set_={"value": statement.excluded.value}
        )
    )
