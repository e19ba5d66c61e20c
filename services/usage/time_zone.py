"""Keep the time zone of stored messages, and redate them in another."""

from datetime import date, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import Row, Select, bindparam, not_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.db import ownership
from app.errors import ConfigurationError
from models import Message, UsageAdjustment
from models.usage_adjustments import ARCHIVED
from services import stored_settings
from services.usage import corrections, rollups
from services.usage.rollups import Slot, Sums

BATCH_ROWS = 5_000
_NAME = "usage_timezone"
_FAR_FROM_THE_ENDS = date.min + timedelta(days=3), date.max - timedelta(days=3)


async def check(session: AsyncSession, zone: ZoneInfo) -> str | None:
    """Check that stored messages were dated in this zone.

    A database without counted messages adopts the zone.

    Returns:
        The zone that was stored before, if it was another one.

    Raises:
        ConfigurationError: stored messages were dated in another zone.
    """
    await refuse_another(session, zone)
    stored = await stored_zone(session)
    if stored == zone.key:
        return None
    await store(session, zone)
    return stored


async def refuse_another(session: AsyncSession, zone: ZoneInfo) -> None:
    """Check the zone without writing.

    Raises:
        ConfigurationError: stored messages were dated in another zone.
    """
    stored = await stored_zone(session)
    if stored in (None, zone.key):
        return
    counted = select(Message.id).where(Message.usage_date.is_not(None)).limit(1)
    if await session.scalar(counted) is not None or await _has_archived(session):
        raise ConfigurationError(
            f"USAGE_TIMEZONE: it is {zone.key}, but the messages of this database were dated by {stored}:"
            " set it back, or stop the servers and run python migrate_token_data.py --redate"
        )


async def _has_archived(session: AsyncSession) -> bool:
    archived = select(UsageAdjustment.user_id).where(UsageAdjustment.reason == ARCHIVED).limit(1)
    return await session.scalar(archived) is not None


async def stored_zone(session: AsyncSession) -> str | None:
    """Return the zone of stored messages; None in an unused database."""
    return await stored_settings.read(session, _NAME)


async def store(session: AsyncSession, zone: ZoneInfo) -> None:
    """Store the zone in which messages are dated from now on."""
    await stored_settings.store(session, _NAME, zone.key)


async def begin_redating(session: AsyncSession, zone: ZoneInfo) -> None:
    """Mark the database as partly redated; no server starts on it.

    Raises:
        ConfigurationError: messages are archived, or a message would have no day in this zone.
    """
    if await _has_archived(session):
        raise ConfigurationError(
            "--redate: archived messages keep their days: first run python migrate_token_data.py --import-archive DIR"
        )
    at_the_ends = not_(Message.usage_date.between(*_FAR_FROM_THE_ENDS))
    for row in await session.execute(select(Message.id, Message.created_at).where(at_the_ends)):
        try:
            clock.usage_date(row.created_at, zone)
        except OverflowError as error:
            raise ConfigurationError(
                f"USAGE_TIMEZONE: {zone.key}: message {row.id}: {error}; nothing was changed"
            ) from None
    stored = await stored_zone(session)
    if stored is not None and stored != zone.key:
        await stored_settings.store(session, _NAME, f"{stored.partition(' ')[0]} (partly {zone.key})")


class Batch(NamedTuple):
    """Report a batch: its last id, rows, and changed days."""

    last_id: int
    rows: int
    redated: int


async def redate_batch(session: AsyncSession, after_id: int, zone: ZoneInfo) -> Batch | None:
    """Redate the next messages, and move their usage accordingly.

    Both happen in the caller's transaction, so the rollups equal the ledger at every commit. When no message is left,
    store the zone and return None.
    """
    last_id, rows = await _lock_next(session, after_id)
    if last_id is None:
        await store(session, zone)
        return None
    days: list[dict[str, Any]] = []
    gains: dict[Slot, Sums] = {}
    losses: dict[Slot, Sums] = {}
    for row in rows:
        day = clock.usage_date(row.created_at, zone)
        if day == row.usage_date:
            continue
        days.append({"message_id": row.id, "owner": row.user_id, "day": day})
        for moved, place in ((gains, day), (losses, row.usage_date)):
            sums = Sums.of_message(row.input_tokens, row.output_tokens, row.cost, row.usage_estimated)
            moved.setdefault(Slot(row.user_id, place, row.model or ""), Sums()).add(sums)
    if days:
        this = Message.id == bindparam("message_id"), Message.user_id == bindparam("owner")
        by_id = update(Message).where(*this).values(usage_date=bindparam("day"))
        await (await session.connection()).execute(by_id, days)
    await rollups.add(session, gains)
    await corrections.remove(session, losses)
    return Batch(last_id, len(rows), len(days))


_COLUMNS = (
    *(Message.id, Message.user_id, Message.model, Message.created_at, Message.usage_date, Message.input_tokens),
    *(Message.output_tokens, Message.cost, Message.usage_estimated),
)


async def _lock_next(session: AsyncSession, after_id: int) -> tuple[int | None, list[Row[*tuple[Any, ...]]]]:
    """Lock the next counted messages; return their last id, and the rows."""
    counted: Select[*tuple[Any, ...]] = select(*_COLUMNS).where(Message.usage_date.is_not(None)).order_by(Message.id)
    following = counted.where(Message.id > after_id).limit(BATCH_ROWS)
    if not ownership.is_on_citus(session.get_bind().dialect):
        rows = list(await session.execute(following.with_for_update()))
        return (rows[-1].id if rows else None), rows
    ids: dict[int, list[int]] = {}  # Citus locks the rows of one user in a statement
    last_id = None
    for row in await session.execute(following.with_only_columns(Message.id, Message.user_id)):
        ids.setdefault(row.user_id, []).append(row.id)
        last_id = row.id
    rows = []
    for user_id, own in sorted(ids.items()):
        locked = counted.where(Message.user_id == user_id, Message.id.in_(own)).with_for_update()
        rows += await session.execute(locked)
    return last_id, rows
