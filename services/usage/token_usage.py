"""Store messages and count them in the caller's transaction.

This module is the only writer of live usage. Every function that stores a message with usage also adds it to the
rollups, in the same transaction: both or neither. Locks are always acquired in the same order: messages by (user,
idempotency key), then the rollups.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from decimal import Decimal
from typing import Any, cast

from sqlalchemy import Row, Table, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.dml import ReturningInsert

from app import clock, metrics
from app.db import database
from app.db.database import InsertInto
from app.db.sqlite_connections import BY_KEY
from models import Message
from services.usage import archived_keys, corrections, rollups
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

# Messages that are stored at once, in the caller's thread on SQLite; more would hold up the event loop.
_FEW = 10

_MESSAGES = cast(Table, Message.__table__)


async def record(session: AsyncSession, entry: Entry, zone: tzinfo) -> int | None:
    """Store one message and count it.

    Returns:
        The id of the message. None if this user already has a message with the same idempotency key, which may be
        archived: then nothing was stored or counted.
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
    options = BY_KEY if len(entries) <= _FEW else {}
    keyed = [i for i in order if entries[i].idempotency_key is not None]
    if keyed:
        rows = await session.execute(
            _insert_new(session), [_row(entries[i], zone) for i in keyed], execution_options=options
        )
        stored = {(row.user_id, row.idempotency_key): row.id for row in rows}
        await _remove_archived(session, stored, options)
        for i in keyed:
            ids[i] = stored.pop((entries[i].user_id, entries[i].idempotency_key), None)
    others = [i for i in order if entries[i].idempotency_key is None]
    if others:
        rows = await session.execute(_INSERT, [_row(entries[i], zone) for i in others], execution_options=options)
        for i, row in zip(others, rows, strict=True):
            ids[i] = row.id
    await _count(session, (entry for entry, id_ in zip(entries, ids, strict=True) if id_ is not None), zone)
    return ids


async def _remove_archived(
    session: AsyncSession, stored: dict[archived_keys.Key, int], options: Mapping[str, Any]
) -> None:
    """Remove new messages whose key belongs to an archived message."""
    if stored and (known := await archived_keys.among(session, stored.keys(), options)):
        again = [stored.pop(key) for key in known]
        own = Message.user_id.in_({user_id for user_id, _ in known}), Message.id.in_(again)
        await session.execute(delete(Message).where(*own))


_INSERT = insert(_MESSAGES).returning(_MESSAGES.c.id, sort_by_parameter_order=True)


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


async def settle(
    session: AsyncSession, message_id: int, entry: Entry, zone: tzinfo, *, replaces_estimate: bool = False
) -> Row[*tuple[Any, ...]] | None:
    """Settle the pending message of a turn, once, and count it.

    Args:
        session: the caller's transaction.
        message_id: the message of the answer.
        entry: the message as it ended; `turn` is the name of its turn. Owner, conversation and instant are those that
            are stored.
        zone: `USAGE_TIMEZONE`.
        replaces_estimate: whether to replace figures, status and content of a message that another process settled as
            `failed`, estimated or uncounted, because this process seemed dead.

    Returns:
        The stored message if this call settled it, otherwise None.
    """
    row = _row(entry, zone)
    this = {"this_id": message_id, "this_turn": entry.turn, "this_user_id": entry.user_id}
    # Without usage, figures that another tool stored are kept.
    changed = {name: row[name] for name in (_SETTLED if entry.usage is not None else _ENDED)}
    if entry.usage is None and entry.status == "failed":
        changed |= NO_KEY
    message = (await session.execute(_SETTLE_PENDING, this | changed)).one_or_none()
    estimate: dict[Slot, Sums] | None = {}
    if message is None and replaces_estimate:
        estimate = await _estimate(session, this)
        if estimate is not None:
            message = (await session.execute(_SETTLE, this | {name: row[name] for name in _SETTLED})).one()
    if message is None:
        return None
    await _count(session, [entry], zone)
    if estimate:
        await corrections.remove(session, estimate)
    database.after_commit(session, functools.partial(metrics.settled, entry.status))
    return message


NO_KEY = {"idempotency_key": None, "request_hash": None}
"""Of a turn that failed and cost nothing: the request may be sent again with its key."""

_ENDED = ("status", "content", "model", "finish_reason")
_SETTLED = (*_ENDED, "usage_date", *Usage.__dataclass_fields__)
_THIS = (
    *(_MESSAGES.c.id == bindparam("this_id"), _MESSAGES.c.turn == bindparam("this_turn")),
    _MESSAGES.c.user_id == bindparam("this_user_id"),
)
_SETTLE = update(_MESSAGES).where(*_THIS).returning(*_MESSAGES.c).execution_options(**BY_KEY)
"""The parameters name the columns to change."""
_SETTLE_PENDING = _SETTLE.where(_MESSAGES.c.status == "pending")
_FAILED = select(_MESSAGES).where(*_THIS, _MESSAGES.c.status == "failed").with_for_update()


async def _estimate(session: AsyncSession, this: Mapping[str, object]) -> dict[Slot, Sums] | None:
    """Return what is counted of a message that was settled as failed.

    None if its figures are not an estimate.
    """
    old = (await session.execute(_FAILED, this)).one_or_none()
    if old is None or old.usage_estimated is False:
        return None
    if old.usage_date is None:
        return {}
    sums = Sums.of_message(old.input_tokens, old.output_tokens, old.cost, old.usage_estimated)
    return {Slot(old.user_id, old.usage_date, old.model or ""): sums}


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
    if not counted:
        return
    await rollups.add(session, used)
    database.after_commit(session, functools.partial(metrics.counted, counted))
