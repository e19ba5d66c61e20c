"""The token-usage service: stores messages and counts them in the caller's transaction. The only writer of live usage.

Every function that stores a message with usage also adds it to its month, in the same transaction: both or neither.
Adding is one upsert (`x = t.x + excluded.x`), never a read followed by a write. Locks are always taken in the same
order: messages by (user, idempotency key), then months by (user, year, month).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import cast

from sqlalchemy import Table, delete, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock, database, money
from app.clock import Month
from app.errors import Conflict, TransactionConflict
from models import Message, UserMonthlyTokenUsage


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a model's answer used. Cached input is part of input; cost is in dollars, None where it is not known."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    cost: Decimal | None = None
    price_source: str | None = None
    usage_estimated: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A message to be stored. It is counted if its role is `assistant` and it has usage."""

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

    @property
    def counted_usage(self) -> Usage | None:
        """The usage, where the message is one that counts."""
        return self.usage if self.role == "assistant" else None


@dataclass
class Sums:
    """Token counts, dollars and messages of one user's month; what is added to the rollup."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_cost: Decimal = field(default=money.ZERO)
    message_count: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def add(self, usage: Usage) -> None:
        """Counts one message more. An unknown cost adds nothing to the dollars."""
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        self.total_cost += usage.cost if usage.cost is not None else money.ZERO
        self.message_count += 1

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.total_cost + other.total_cost,
            self.message_count + other.message_count,
        )

    def __sub__(self, other: "Sums") -> "Sums":
        return Sums(
            self.input_tokens - other.input_tokens,
            self.output_tokens - other.output_tokens,
            self.total_cost - other.total_cost,
            self.message_count - other.message_count,
        )


_MESSAGES = cast(Table, Message.__table__)

UserMonth = tuple[int, Month]
FIGURES = ("input_tokens", "output_tokens", "total_tokens", "total_cost", "message_count")


async def record(session: AsyncSession, entry: Entry, zone: tzinfo) -> int | None:
    """Stores one message and counts it.

    Returns:
        The id of the message, or None where this user has a message of the same idempotency key already: then nothing
        was stored and nothing counted.
    """
    ids = await record_all(session, [entry], zone)
    return ids[0]


async def record_all(session: AsyncSession, entries: Sequence[Entry], zone: tzinfo) -> list[int | None]:
    """Stores messages and counts them, in one statement for the messages and one for the months.

    Args:
        session: the caller's transaction.
        entries: messages; of two with the same user and idempotency key only one is stored.
        zone: `USAGE_TIMEZONE`.

    Returns:
        For each entry the id of its message, or None where its idempotency key was there already.

    Raises:
        TransactionConflict: a user was deleted at this moment.
    """
    try:
        return await _record_all(session, entries, zone)
    except IntegrityError as error:
        raise _explained(error) from None


def _explained(error: IntegrityError) -> Exception:
    if "_user_id_fkey" in str(error.orig):
        return TransactionConflict("the user was deleted at this moment")
    if "ck_user_monthly_token_usage_total_cost" in str(error.orig):
        return Conflict("The month of this user would cost more than can be counted.")
    return error


async def _record_all(session: AsyncSession, entries: Sequence[Entry], zone: tzinfo) -> list[int | None]:
    order = sorted(range(len(entries)), key=lambda i: (entries[i].user_id, entries[i].idempotency_key or ""))
    statement = (
        database.insert(session, _MESSAGES)
        .on_conflict_do_nothing(
            index_elements=[Message.user_id, Message.idempotency_key],
            index_where=Message.idempotency_key.is_not(None),
        )
        .returning(Message.id, Message.user_id, Message.idempotency_key)
    )
    ids: list[int | None] = [None] * len(entries)
    keyed = [i for i in order if entries[i].idempotency_key is not None]
    if keyed:
        rows = await session.execute(statement, [_row(entries[i], zone) for i in keyed])
        stored = {(row.user_id, row.idempotency_key): row.id for row in rows}
        for i in keyed:
            ids[i] = stored.pop((entries[i].user_id, entries[i].idempotency_key), None)
    for i in (i for i in order if entries[i].idempotency_key is None):
        ids[i] = await session.scalar(
            database.insert(session, Message).values(_row(entries[i], zone)).returning(Message.id)
        )
    await _count(session, (entry for entry, id_ in zip(entries, ids, strict=True) if id_ is not None), zone)
    return ids


@dataclass(frozen=True, kw_only=True)
class Settlement:
    """How a pending message ended."""

    status: str
    content: str | None
    model: str | None
    usage: Usage | None


async def settle(session: AsyncSession, message_id: int, turn: str, settlement: Settlement, zone: tzinfo) -> bool:
    """Gives the pending message of a turn its end, and counts it; a second settlement of the same message does nothing.

    Returns:
        Whether this call was the one that settled it.
    """
    usage = settlement.usage
    statement = (
        update(Message)
        .where(Message.id == message_id, Message.turn == turn, Message.status == "pending")
        .values(status=settlement.status, content=settlement.content, model=settlement.model)
        .returning(Message.user_id, Message.created_at)
    )
    row = (await session.execute(statement)).one_or_none()
    if row is None:
        return False
    if usage is not None:
        day = clock.usage_date(row.created_at, zone)
        figures = update(Message).where(Message.id == message_id).values(usage_date=day, **asdict(usage))
        await session.execute(figures)
        entry = Entry(user_id=row.user_id, role="assistant", created_at=row.created_at, usage=usage)
        await _count(session, [entry], zone)
    return True


def _row(entry: Entry, zone: tzinfo) -> dict[str, object]:
    usage = entry.usage
    counted = entry.counted_usage is not None
    return {
        "user_id": entry.user_id,
        "conversation_id": entry.conversation_id,
        "role": entry.role,
        "content": entry.content,
        "model": entry.model,
        "status": entry.status,
        "created_at": entry.created_at,
        "idempotency_key": entry.idempotency_key,
        "request_hash": entry.request_hash,
        "turn": entry.turn,
        "usage_date": clock.usage_date(entry.created_at, zone) if counted else None,
        **(asdict(usage) if usage is not None else dict.fromkeys(Usage.__dataclass_fields__)),
    }


async def _count(session: AsyncSession, entries: Iterable[Entry], zone: tzinfo) -> None:
    months: dict[UserMonth, Sums] = {}
    for entry in entries:
        if entry.counted_usage is not None:
            month = Month.of(clock.usage_date(entry.created_at, zone))
            months.setdefault((entry.user_id, month), Sums()).add(entry.counted_usage)
    await add(session, months)


async def add(session: AsyncSession, months: dict[UserMonth, Sums]) -> None:
    """Adds sums, none of them negative, to the rollup; makes the months that are missing.

    Raises:
        Conflict: a month would cost more than its column can hold.
        TransactionConflict: a user was deleted at this moment.
    """
    if not months:
        return
    now = clock.now()
    rows = [
        {
            "user_id": user_id,
            "year": month.year,
            "month": month.month,
            "input_tokens": sums.input_tokens,
            "output_tokens": sums.output_tokens,
            "total_tokens": sums.total_tokens,
            "total_cost": sums.total_cost,
            "message_count": sums.message_count,
            "last_updated": now,
            "created_at": now,
        }
        for (user_id, month), sums in sorted(months.items(), key=lambda item: item[0])
    ]
    table = UserMonthlyTokenUsage
    statement = database.insert(session, table).values(rows)
    added = {name: getattr(table, name) + statement.excluded[name] for name in FIGURES}
    statement = statement.on_conflict_do_update(
        index_elements=[table.user_id, table.year, table.month],
        set_=added | {"last_updated": statement.excluded.last_updated},
    )
    try:
        await session.execute(statement)
    except IntegrityError as error:
        raise _explained(error) from None


async def adjust(session: AsyncSession, months: dict[UserMonth, Sums]) -> None:
    """Adds sums, which may be negative, to months that are there; a month of which nothing is left goes.

    Not an upsert as `add` is, since the checks of the database would refuse the INSERT of something negative.
    """
    table = UserMonthlyTokenUsage
    for (user_id, month), sums in sorted(months.items(), key=lambda item: item[0]):
        here = (table.user_id == user_id, table.year == month.year, table.month == month.month)
        changed = {name: getattr(table, name) + getattr(sums, name) for name in FIGURES}
        await session.execute(update(table).where(*here).values(changed | {"last_updated": clock.now()}))
        nothing_left = (table.message_count == 0, table.total_tokens == 0, table.total_cost == money.ZERO)
        await session.execute(delete(table).where(*here, *nothing_left))
