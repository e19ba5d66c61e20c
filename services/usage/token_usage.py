"""Store messages and count them in the caller's transaction.

This module is the only writer of live usage. Every function that stores a message with usage also adds it to the
rollups, in the same transaction: both or neither. Locks are always acquired in the same order: messages by (user,
idempotency key), then the rollups.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from decimal import Decimal
from typing import Any, cast

from sqlalchemy import Table, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.dml import ReturningInsert

from app import clock, metrics
from app.db import database
from app.db.database import InsertInto
from models import Message
from services.usage import corrections, rollups
from services.usage.rollups import Slot, Sums


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Hold the usage of an answer.

    Cached input is part of input. The cost is in dollars; None if it is unknown.
    """

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    cost: Decimal | None = None
    price_source: str | None = None
    usage_estimated: bool = False
    usage_details: str | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Describe a message to store; an `assistant` message with usage is counted."""

    user_id: int
    role: str
    created_at: datetime
    usage: Usage | None = None
    conversation_id: str | None = None
    content: str | None = None
    model: str | None = None
    status: str = "complete"
    idempotency_key: str | None = None
    request_hash: str | None = None
    turn: str | None = None
    finish_reason: str | None = None

    @property
    def stored_model(self) -> str | None:
        """Return the model's name, cut for the daily rollup's key."""
        return None if self.model is None else self.model[:MAX_MODEL_NAME]

    @property
    def counted_usage(self) -> Usage | None:
        """Return the usage if the message is counted, otherwise None."""
        return self.usage if self.role == "assistant" else None


# Characters of a stored model's name.
MAX_MODEL_NAME = 255

_MESSAGES = cast(Table, Message.__table__)


async def record(session: AsyncSession, entry: Entry, zone: tzinfo) -> int | None:
    """Store one message and count it.

    Returns:
        The id of the message. None if this user already has a message with the same idempotency key: then nothing was
        stored or counted.
    """
    ids = await record_all(session, [entry], zone)
    return ids[0]


async def record_all(session: AsyncSession, entries: Sequence[Entry], zone: tzinfo) -> list[int | None]:
    """Store messages and count them, in a few statements for any number.

    Args:
        session: the caller's transaction.
        entries: the messages; of two with the same user and idempotency key only one is stored.
        zone: `USAGE_TIMEZONE`.

    Returns:
        The id of each entry's message, or None if its idempotency key already existed.

    Raises:
        TransactionConflict: a user was deleted concurrently.
    """
    try:
        return await _record_all(session, entries, zone)
    except IntegrityError as error:
        raise rollups.as_conflict(error) from None


async def _record_all(session: AsyncSession, entries: Sequence[Entry], zone: tzinfo) -> list[int | None]:
    order = sorted(range(len(entries)), key=lambda i: (entries[i].user_id, entries[i].idempotency_key or ""))
    ids: list[int | None] = [None] * len(entries)
    keyed = [i for i in order if entries[i].idempotency_key is not None]
    if keyed:
        rows = await session.execute(_insert_new(session), [_row(entries[i], zone) for i in keyed])
        stored = {(row.user_id, row.idempotency_key): row.id for row in rows}
        for i in keyed:
            ids[i] = stored.pop((entries[i].user_id, entries[i].idempotency_key), None)
    for i in (i for i in order if entries[i].idempotency_key is None):
        ids[i] = await session.scalar(_INSERT, _row(entries[i], zone))
    await _count(session, (entry for entry, id_ in zip(entries, ids, strict=True) if id_ is not None), zone)
    return ids


_INSERT = insert(_MESSAGES).returning(_MESSAGES.c.id)


@database.made_once
def _insert_new(insert: InsertInto) -> ReturningInsert[*tuple[Any, ...]]:
    return (
        insert(_MESSAGES)
        .on_conflict_do_nothing(
            index_elements=[_MESSAGES.c.user_id, _MESSAGES.c.idempotency_key],
            index_where=_MESSAGES.c.idempotency_key.is_not(None),
        )
        .returning(_MESSAGES.c.id, _MESSAGES.c.user_id, _MESSAGES.c.idempotency_key)
    )


@dataclass(frozen=True, kw_only=True)
class Settlement:
    """Describe how a pending message ended."""

    status: str
    content: str | None
    model: str | None
    usage: Usage | None
    finish_reason: str | None = None


async def settle(
    session: AsyncSession,
    message_id: int,
    turn: str,
    settlement: Settlement,
    zone: tzinfo,
    *,
    replaces_estimate: bool = False,
) -> bool:
    """Settle the pending message of a turn, once, and count it.

    Args:
        session: the caller's transaction.
        message_id: the message of the answer.
        turn: the name of the turn.
        settlement: how the turn ended.
        zone: `USAGE_TIMEZONE`.
        replaces_estimate: whether to replace figures, status and content of a message that another process settled as
            `failed`, estimated or uncounted, because this process seemed dead.

    Returns:
        Whether this call settled the message.
    """
    statement = (
        update(Message)
        .where(Message.id == message_id, Message.turn == turn, Message.status == "pending")
        .values(status=settlement.status)
        .returning(Message.user_id, Message.created_at)
    )
    row = (await session.execute(statement)).one_or_none()
    if row is None:
        return replaces_estimate and await _replace_estimate(session, message_id, turn, settlement, zone)
    database.after_commit(session, functools.partial(metrics.settled, settlement.status))
    entry = _entry(settlement, row.user_id, row.created_at)
    values = _settled(entry, zone)
    if entry.usage is None:  # keep figures that another tool stored
        values = {name: values[name] for name in ("content", "model", "finish_reason")}
    await session.execute(update(Message).where(Message.id == message_id).values(values))
    await _count(session, [entry], zone)
    return True


def _entry(settlement: Settlement, user_id: int, created_at: datetime) -> Entry:
    return Entry(user_id=user_id, role="assistant", created_at=created_at, **vars(settlement))


def _settled(entry: Entry, zone: tzinfo) -> dict[str, object]:
    """Return the columns that settling changes."""
    row = _row(entry, zone)
    changed = ("content", "model", "status", "finish_reason", "usage_date", *Usage.__dataclass_fields__)
    return {name: row[name] for name in changed}


async def _replace_estimate(
    session: AsyncSession, message_id: int, turn: str, settlement: Settlement, zone: tzinfo
) -> bool:
    columns = (
        *(Message.user_id, Message.created_at, Message.model, Message.status),
        *(Message.usage_date, Message.input_tokens, Message.output_tokens, Message.cost, Message.usage_estimated),
    )
    mine = Message.id == message_id, Message.turn == turn
    old = (await session.execute(select(*columns).where(*mine).with_for_update())).one_or_none()
    if old is None or old.status != "failed" or old.usage_estimated is False:
        return False
    entry = _entry(settlement, old.user_id, old.created_at)
    await session.execute(update(Message).where(*mine).values(_settled(entry, zone)))
    await _count(session, [entry], zone)
    if old.usage_date is not None:
        slot = Slot(old.user_id, old.usage_date, old.model or "")
        sums = Sums.of_message(old.input_tokens, old.output_tokens, old.cost, old.usage_estimated)
        await corrections.remove(session, {slot: sums})
    database.after_commit(session, functools.partial(metrics.settled, settlement.status))
    return True


def _row(entry: Entry, zone: tzinfo) -> dict[str, object]:
    usage = entry.usage
    counted = entry.counted_usage is not None
    return {
        "user_id": entry.user_id,
        "conversation_id": entry.conversation_id,
        "role": entry.role,
        "content": entry.content,
        "model": entry.stored_model,
        "status": entry.status,
        "created_at": entry.created_at,
        "idempotency_key": entry.idempotency_key,
        "request_hash": entry.request_hash,
        "turn": entry.turn,
        "finish_reason": entry.finish_reason,
        "usage_date": clock.usage_date(entry.created_at, zone) if counted else None,
        **(vars(usage) if usage is not None else dict.fromkeys(Usage.__dataclass_fields__)),
    }


def _slot(entry: Entry, day: date) -> Slot:
    return Slot(entry.user_id, day, entry.stored_model or "")


async def _count(session: AsyncSession, entries: Iterable[Entry], zone: tzinfo) -> None:
    used: dict[Slot, Sums] = {}
    counted: list[Usage] = []
    for entry in entries:
        if (usage := entry.counted_usage) is not None:
            slot = _slot(entry, clock.usage_date(entry.created_at, zone))
            sums = Sums.of_message(usage.input_tokens, usage.output_tokens, usage.cost, usage.usage_estimated)
            used.setdefault(slot, Sums()).add(sums)
            counted.append(usage)
    await rollups.add(session, used)
    database.after_commit(session, functools.partial(metrics.counted, counted))
