"""Begin a chat turn in one transaction, and settle it in another.

The second transaction also counts the usage. `runner` asks the model between the two.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from decimal import Decimal
from types import MappingProxyType
from typing import NamedTuple, cast

from sqlalchemy import ColumnElement, Row, Table, and_, bindparam, func, select, true, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.db.sqlite_connections import BY_KEY
from app.errors import Gone, InvalidRequest, StillRunning, TransactionConflict
from models import Conversation, Message, User
from services.chat import branches, conversations, history, images, requested_models
from services.chat.branches import Edited
from services.chat.conversations import StoredMessage
from services.chat.images import Image
from services.chat.leases import PendingTurn
from services.chat.tokenizer import Prompt, TokenCounts
from services.usage import archived_keys, token_usage
from services.usage.pricing import Priced, PriceList
from services.usage.reported_usage import Details

MAX_TITLE = 80
_KEY_PREFIX = "chat:"

Options = Mapping[str, float | int | str]
"""Parameters that are passed to the service unchanged, such as `temperature`."""

NO_OPTIONS: Options = MappingProxyType({})


class Question(NamedTuple):
    """A user's question to a model, in a new or existing conversation."""

    user_id: int
    text: str
    model: str
    conversation_id: str | None = None
    idempotency_key: str | None = None
    system: str | None = None
    options: Options = NO_OPTIONS
    model_type: str = requested_models.DEFAULT_CATEGORY
    images: Sequence[Image] = ()
    edited: Edited | None = None
    """The question that this one replaces in a new branch."""
    category_id: int | None = None
    """The model category of a new conversation."""
    chosen_by: int | None = None
    """The id of the model category that chose the model, if any. The hash holds this id, as the category may change."""
    preferences: str | None = None
    """The text of the user's preferences. It may change between attempts of one request, so that the hash omits it."""
    is_named: bool = False
    """Whether the request chose the model. Then the question is stored with it, and an edit asks it again."""

    @property
    def instructions(self) -> str | None:
        """The system prompt: the preferences, then the system text of this request."""
        return "\n\n".join(text for text in (self.preferences, self.system) if text) or None

    @property
    def hash(self) -> str:
        """A hash that identifies the question under its idempotency key."""
        model = self.model if self.chosen_by is None else self.chosen_by
        fields: list[object] = [self.text, model, self.conversation_id]
        if self.system is not None or self.options:
            fields += [self.system, sorted(self.options.items())]
        if self.images:
            fields.append([hashlib.sha256(image.data).hexdigest() for image in self.images])
        if self.edited is not None:
            fields.append({"edited": self.edited.message_id})
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


@dataclass(frozen=True)
class Turn:
    """A turn that has begun: its pending message and the prompts."""

    name: str
    user_id: int
    conversation_id: str
    message_id: int
    model: str
    prompts: Sequence[Prompt]
    user_message_id: int | None = None
    options: Options = field(default_factory=dict)

    @property
    def pending(self) -> PendingTurn:
        """Return what identifies the pending message."""
        return PendingTurn(self.message_id, self.name, self.user_id)


@dataclass(frozen=True)
class Outcome:
    """`complete`, `interrupted` or `failed`; without tokens, nothing is counted."""

    status: str
    content: str
    model: str
    tokens: TokenCounts | None
    finish_reason: str | None = None
    details: Details = field(default_factory=dict)
    cost: Decimal | None = None
    """Dollars, if the service reports its charge."""


class Answered(NamedTuple):
    """A stored answer, its conversation, and, where needed, its question."""

    conversation_id: str
    message: StoredMessage
    user_message_id: int | None = None
    is_earlier: bool = False
    """Of `settle`: whether an earlier call had settled the turn."""


async def begin(
    session: AsyncSession, question: Question, turn: str, zone: tzinfo, *, is_first: bool = False
) -> Turn | Answered:
    """Store the user's message and a pending answer.

    If the idempotency key already has an answer, return that one instead.

    Args:
        session: the caller's transaction.
        question: what is asked.
        turn: the unique name of this turn. A transaction that is retried finds its earlier rows by this name.
        zone: `USAGE_TIMEZONE`.
        is_first: this is the first attempt of the transaction, so that there are no earlier rows to look for.

    Raises:
        NotFound: the conversation does not exist, is deleted, or belongs to another user.
        NotAQuestion: the edited message is not a question.
        StillRunning: the question of this idempotency key is still being answered.
        InvalidRequest: the idempotency key was used for another question.
        Gone: the answer of this idempotency key is archived.
        TransactionConflict: a concurrent request used the idempotency key. A retry finds the message of that request.
    """
    if not is_first and (mine := await _begun(session, question, turn)):
        return mine
    if question.idempotency_key is not None and (known := await _known(session, question, is_first)):
        return known
    now = clock.now()
    conversation_id = await _conversation(session, question)
    entry = functools.partial(
        token_usage.Entry, user_id=question.user_id, created_at=now, conversation_id=conversation_id
    )
    named = question.model if question.is_named else None
    asked = entry(role="user", content=question.text, model=named)
    pending = entry(
        role="assistant",
        model=question.model,
        status="pending",
        idempotency_key=_key(question),
        request_hash=question.hash if question.idempotency_key else None,
        turn=turn,
    )
    if question.idempotency_key is None:
        user_message_id, message_id = await token_usage.record_all(session, [asked, pending], zone)
    else:  # which would be stored before the question
        user_message_id, message_id = [await token_usage.record(session, entry, zone) for entry in (asked, pending)]
    if message_id is None or user_message_id is None:
        raise TransactionConflict
    if question.images:
        await images.store(session, question.user_id, user_message_id, question.images)
    if question.edited is not None:
        await branches.attach(session, question.user_id, question.edited, user_message_id)
    said: list[Prompt] = [{"role": "user", "content": question.text}]
    if question.conversation_id is not None or question.edited is not None or question.images:
        said = await history.prompts(session, question.user_id, conversation_id, message_id)
    said = history.with_system(said, question.instructions)
    rest = message_id, question.model, said, user_message_id, question.options
    return Turn(turn, question.user_id, conversation_id, *rest)


async def give_up(session: AsyncSession, user_id: int, turn: str) -> None:
    """Fail a turn, if begun, whose model was never asked; count nothing."""
    own = Message.user_id == user_id, Message.turn == turn
    pending = update(Message).where(*own, Message.status == "pending")
    await session.execute(pending.values(status="failed", content="", **token_usage.NO_KEY))


async def settle(
    session: AsyncSession,
    turn: PendingTurn,
    outcome: Outcome,
    api_url: str | None,
    prices: PriceList,
    zone: tzinfo,
    *,
    is_owner: bool = True,
) -> Answered | None:
    """Settle and count the pending message of a turn exactly once.

    The result of the turn's own process replaces an estimate that another process stored meanwhile. A turn is found by
    id and name, since SQLite reuses the ids of a deleted user's messages.

    Returns:
        The current message, even if an earlier call settled the turn; None if the user was deleted.
    """
    this = {"message_id": turn.message_id, "turn": turn.name, "owner": turn.user_id}
    found = (await session.execute(_LOCKED, this)).one_or_none() or (await session.execute(_ALONE, this)).one_or_none()
    if found is None:
        return None
    entry = token_usage.Entry(
        user_id=found.user_id,
        role="assistant",
        created_at=found.created_at,
        conversation_id=found.conversation_id,
        content=None if found.is_erased else outcome.content,
        model=outcome.model,
        status=outcome.status,
        turn=turn.name,
        finish_reason=outcome.finish_reason,
        usage=_usage(outcome, found.model, found.created_at, api_url, prices),
    )
    settled = await token_usage.settle(session, turn.message_id, entry, zone, replaces_estimate=is_owner)
    message = settled or (await session.execute(_SETTLED_BEFORE, this)).one_or_none()
    return None if message is None else Answered(found.conversation_id, message, is_earlier=settled is None)


_MESSAGES, _CONVERSATIONS, _USERS = (cast(Table, model.__table__) for model in (Message, Conversation, User))
_THIS = (
    *(_MESSAGES.c.id == bindparam("message_id"), _MESSAGES.c.turn == bindparam("turn")),
    _MESSAGES.c.user_id == bindparam("owner", type_=_MESSAGES.c.user_id.type),
)
_COLUMNS = (_MESSAGES.c.user_id, _MESSAGES.c.conversation_id, _MESSAGES.c.created_at, _MESSAGES.c.model)
# Locked before the message, in the order of `conversations.delete`: erased content must not come back.
_LOCKED = (
    select(*_COLUMNS, _CONVERSATIONS.c.deleted_at.is_not(None).label("is_erased"))
    .join(
        _CONVERSATIONS,
        and_(_CONVERSATIONS.c.id == _MESSAGES.c.conversation_id, _CONVERSATIONS.c.user_id == _MESSAGES.c.user_id),
    )
    .join(_USERS, _USERS.c.id == _CONVERSATIONS.c.user_id)
    .where(*_THIS)
    .with_for_update(read=True, of=(_USERS, _CONVERSATIONS))
    .execution_options(**BY_KEY)
)
_ALONE = select(*_COLUMNS, true().label("is_erased")).where(*_THIS, _MESSAGES.c.conversation_id.is_not(None))
_SETTLED_BEFORE = select(_MESSAGES).where(*_THIS)


def _usage(
    outcome: Outcome, requested: str | None, at: datetime, api_url: str | None, prices: PriceList
) -> token_usage.Usage | None:
    if outcome.tokens is None:
        return None
    counts = outcome.tokens
    priced = Priced(
        outcome.model,
        at,
        *counts[:3],
        api_url,
        requested=requested,
        details=outcome.details,
        reported_cost=outcome.cost,
    )
    price = prices.price(priced)
    return token_usage.Usage(
        input_tokens=counts.input_tokens,
        output_tokens=counts.output_tokens,
        cached_input_tokens=counts.cached_input_tokens,
        cost=price.cost,
        price_source=price.source,
        usage_estimated=counts.estimated,
        usage_details=json.dumps(dict(outcome.details), sort_keys=True) if outcome.details else None,
    )


def _key(question: Question) -> str | None:
    return None if question.idempotency_key is None else _KEY_PREFIX + question.idempotency_key


async def _begun(session: AsyncSession, question: Question, turn: str) -> Turn | None:
    own = Message.user_id == question.user_id, Message.turn == turn
    mine = await _one(session, *own, Message.status == "pending")
    if mine is None:
        return None
    where = question.user_id, mine.conversation_id, mine.id
    said = history.with_system(await history.prompts(session, *where), question.instructions)
    asked = await _question_of(session, *where)
    return Turn(turn, *where, question.model, said, asked, question.options)


async def _known(session: AsyncSession, question: Question, is_first: bool) -> Answered | None:
    row = await _one(session, Message.user_id == question.user_id, Message.idempotency_key == _key(question))
    if row is None:
        if not is_first:  # the first attempt finds an archived key when it has stored the answer
            await _refuse_archived(session, question)
        return None
    _check_hash(row.request_hash, question)
    if row.status == "pending":
        raise StillRunning("The request of this Idempotency-Key is still being answered.")
    message = await session.scalar(select(Message).where(Message.id == row.id, Message.user_id == question.user_id))
    if message is None:
        raise TransactionConflict
    asked = await _question_of(session, question.user_id, row.conversation_id, row.id)
    return Answered(row.conversation_id, message, asked)


async def _refuse_archived(session: AsyncSession, question: Question) -> None:
    stored = await archived_keys.request_hash(session, (question.user_id, _key(question) or ""))
    if stored is not None:
        _check_hash(stored, question)
        raise Gone("The answer of this Idempotency-Key is archived. Send the question again with another key.")


def _check_hash(stored: object, question: Question) -> None:
    if stored != question.hash:
        raise InvalidRequest({"Idempotency-Key": ["This key was used for another request."]})


async def _question_of(session: AsyncSession, user_id: int, conversation_id: str, answer_id: int) -> int | None:
    """Return the question of an answer: both have the same instant."""
    is_own = Message.user_id == user_id
    at = select(Message.created_at).where(Message.id == answer_id, is_own).scalar_subquery()
    earlier = Message.conversation_id == conversation_id, Message.id < answer_id, Message.role == "user"
    return await session.scalar(select(func.max(Message.id)).where(is_own, *earlier, Message.created_at == at))


async def _one(session: AsyncSession, *conditions: ColumnElement[bool]) -> Row[*tuple[object, ...]] | None:
    columns = (Message.id, Message.conversation_id, Message.status, Message.request_hash)
    return (await session.execute(select(*columns).where(*conditions))).one_or_none()


async def _conversation(session: AsyncSession, question: Question) -> str:
    """Return the conversation of the question: existing, branch, or new."""
    if question.edited is not None:
        return await branches.begin(session, question.user_id, question.edited)
    if question.conversation_id is None:
        values = {"model_type": question.model_type, "category_id": question.category_id}
        return await conversations.begin(session, question.user_id, _title(question), **values)
    await conversations.touch(session, question.user_id, question.conversation_id)
    return question.conversation_id


def _title(question: Question) -> str:
    return " ".join(question.text.split())[:MAX_TITLE]
