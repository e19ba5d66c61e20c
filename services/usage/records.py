"""Store usage that other backends report: all or none, each record once."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Row, Select, bindparam, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.db import ownership
from app.errors import Conflict, InvalidRequest
from models import ArchivedKey, Conversation, Message, User
from services.usage import archived_keys, token_usage
from services.usage.pricing import Price, Priced, PriceList

_KEY_PREFIX = "record:"


@dataclass(frozen=True, kw_only=True)
class UsageRecord:
    """Describe one answer of a model, as another backend reports it.

    The price list is the default for `cost`, the current time for `created_at`.
    """

    id: str
    user_id: int
    model: str
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    cost: Decimal | None = None
    conversation_id: str | None = None
    role: str = "assistant"
    content: str | None = None
    created_at: datetime | None = None

    @property
    def key(self) -> tuple[int, str]:
        """Return the key that identifies the record when it is sent again."""
        return self.user_id, _KEY_PREFIX + self.id


class Recorded(NamedTuple):
    """Count the stored records, and the duplicates."""

    recorded: int
    duplicates: int


async def record(session: AsyncSession, records: Sequence[UsageRecord], prices: PriceList, zone: tzinfo) -> Recorded:
    """Store and count the new records.

    Raises:
        InvalidRequest: a user or a conversation is unknown, or the conversation belongs to another user.
        TransactionConflict: a user was deleted concurrently.
        Conflict: an id is already stored with other figures; the caller's transaction must roll back.
    """
    erased = await _check_references(session, records)
    unique: dict[tuple[int, str], UsageRecord] = {}
    again: list[UsageRecord] = []
    for item in records:
        if unique.setdefault(item.key, item) is not item:
            again.append(item)
    for item in again:
        if not _same_request(unique[item.key], item):
            raise _conflict(item)
    ids = await token_usage.record_all(session, [_entry(item, prices, erased) for item in unique.values()], zone)
    known = [item for item, id_ in zip(unique.values(), ids, strict=True) if id_ is None]
    await _check_figures(session, [*known, *again])
    return Recorded(len(unique) - len(known), len(again) + len(known))


def _entry(item: UsageRecord, prices: PriceList, erased: Collection[str]) -> token_usage.Entry:
    created_at = item.created_at or clock.now()
    if item.cost is not None:
        price = Price(item.cost, "caller")
    else:
        tokens = (item.input_tokens, item.output_tokens, item.cached_input_tokens)
        price = prices.price(Priced(item.model, created_at, *tokens))
    return token_usage.Entry(
        user_id=item.user_id,
        role=item.role,
        created_at=created_at,
        conversation_id=item.conversation_id,
        content=None if item.conversation_id in erased else item.content,
        model=item.model,
        idempotency_key=item.key[1],
        usage=token_usage.Usage(
            input_tokens=item.input_tokens,
            output_tokens=item.output_tokens,
            cached_input_tokens=item.cached_input_tokens,
            cost=price.cost,
            price_source=price.source,
        ),
    )


async def _check_references(session: AsyncSession, records: Sequence[UsageRecord]) -> Collection[str]:
    """Check users and conversations; return the conversations with erased content.

    Usage in these conversations counts, but their content is not stored.
    """
    # Users are locked before their conversations, as when a user is deleted.
    present = select(User.id).where(User.id.in_({item.user_id for item in records})).order_by(User.id)
    users = set(await session.scalars(present.with_for_update(read=True, key_share=True)))
    wanted = {item.conversation_id for item in records if item.conversation_id is not None}
    conversations = await _lock_conversations(session, users, wanted) if wanted else []
    owners = {row.id: row.user_id for row in conversations}
    errors: dict[str, list[str]] = {}
    for i, item in enumerate(records):
        if item.user_id not in users:
            errors[f"records.{i}.user_id"] = ["There is no such user."]
        elif item.conversation_id is not None and owners.get(item.conversation_id) != item.user_id:
            errors[f"records.{i}.conversation_id"] = ["This user has no such conversation."]
    if errors:
        raise InvalidRequest(errors)
    return {row.id for row in conversations if row.deleted_at is not None}


_LOCKED = (
    select(Conversation.id, Conversation.user_id, Conversation.deleted_at)
    .where(Conversation.user_id.in_(bindparam("users", expanding=True)))
    .where(Conversation.id.in_(bindparam("wanted", expanding=True)))
    .with_for_update(read=True)
)


async def _lock_conversations(
    session: AsyncSession, users: Collection[int], wanted: Collection[str]
) -> Sequence[Row[*tuple[Any, ...]]]:
    # Citus locks the rows of one user in a statement.
    alike = [[user_id] for user_id in sorted(users)] if ownership.is_complete(session) else [sorted(users)]
    values = [{"users": some, "wanted": list(wanted)} for some in alike]
    return [row for each in values for row in await session.execute(_LOCKED, each)]


async def _check_figures(session: AsyncSession, known: Sequence[UsageRecord]) -> None:
    if not known:
        return
    keys = [item.key for item in known]
    # In one statement: between two of them, a message could be archived.
    rows = await session.execute(union_all(*(_stored_figures(table, keys) for table in (Message, ArchivedKey))))
    stored = {(row.user_id, row.idempotency_key): row for row in rows}
    for item in known:
        row = stored.get(item.key)
        if row is None or not _same_figures(row, item):
            raise _conflict(item)


def _stored_figures(
    table: type[Message] | type[ArchivedKey], keys: Collection[tuple[int, str]]
) -> Select[*tuple[Any, ...]]:
    columns = (
        table.user_id,
        table.idempotency_key,
        table.role,
        table.model,
        table.input_tokens,
        table.output_tokens,
        table.cached_input_tokens,
        table.cost,
        table.created_at,
    )
    return archived_keys.with_keys(select(*columns), table, keys)


def _figures(item: UsageRecord) -> tuple[object, ...]:
    return item.role, item.model, item.input_tokens, item.output_tokens, item.cached_input_tokens


def _same_request(one: UsageRecord, other: UsageRecord) -> bool:
    return (
        _figures(one) == _figures(other)
        and (one.cost == other.cost or None in (one.cost, other.cost))
        and (one.created_at == other.created_at or None in (one.created_at, other.created_at))
    )


def _same_figures(stored: Row[*tuple[Any, ...]], item: UsageRecord) -> bool:
    figures = (stored.role, stored.model, stored.input_tokens, stored.output_tokens, stored.cached_input_tokens)
    return (
        figures == _figures(item) and item.cost in (None, stored.cost) and item.created_at in (None, stored.created_at)
    )


def _conflict(item: UsageRecord) -> Conflict:
    return Conflict(f"The record {item.id!r} of user {item.user_id} is already stored with other figures.")
