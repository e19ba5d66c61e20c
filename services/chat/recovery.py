"""Settle the turns of dead processes, keep this lease alive, index messages."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, Select, and_, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import clock
from app.db import failures
from models import Message
from services.chat import conversations, history, leases, settlement, tokenizer, trigrams
from services.chat.leases import Observer, PendingTurn
from services.chat.runner import TurnRunner
from services.chat.tokenizer import TokenCounts
from services.chat.turns import Answered, Outcome

logger = logging.getLogger(__name__)

# The age at which a turn of an earlier version, which has no lease, is orphaned: an answer takes at most 10 minutes.
FORMER_AGE = timedelta(minutes=11)

# Seconds between two queries for answers whose callers asked another process to stop them.
STOP_SECONDS = 1.0


async def watch(runner: TurnRunner, stop: asyncio.Event) -> None:
    """Renew the lease, settle orphaned turns, index messages, until `stop` is set.

    All begin at once and repeat periodically.
    """
    observer, heartbeat = Observer(runner.lease), leases.HEARTBEAT_SECONDS
    async with asyncio.TaskGroup() as group:  # separate tasks, since many orphans may take long
        group.create_task(_repeat(runner.renew_lease, stop, heartbeat))
        group.create_task(_repeat(runner.stop_marked, stop, min(heartbeat, STOP_SECONDS)))
        group.create_task(_repeat(functools.partial(settle_orphans, runner, observer), stop, heartbeat))
        group.create_task(_repeat(functools.partial(trigrams.keep, runner.database, stop), stop, trigrams.LOOK_SECONDS))


async def _repeat(work: Callable[[], Awaitable[object]], stop: asyncio.Event, seconds: float) -> None:
    while not stop.is_set():
        try:
            await work()
        except Exception as error:
            failures.log(logger, "periodic work failed; retrying soon", error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)


async def settle_orphans(runner: TurnRunner, observer: Observer) -> int:
    """Settle the pending messages of dead processes as failed.

    Each message counts an estimate of its prompt. A message that cannot be settled does not prevent other messages from
    being settled.

    Returns:
        The number of messages that this call settled.
    """
    pending, heartbeats = await runner.database.read(_look)
    names = {PendingTurn(row.id, row.turn, row.user_id): row for row in pending}
    orphans = {turn: names[turn] for turn in observer.orphans(names, heartbeats)}
    orphans |= {turn: row for turn, row in names.items() if _is_former(row)}
    settled = 0
    for turn, row in orphans.items():
        try:
            settled += await _settle(runner, turn, row)
        except Exception as error:
            failures.log(logger, f"message {turn.message_id} could not be settled; retrying soon", error)
            if failures.is_disconnect(error):
                break
    if settled:
        logger.warning("settled messages whose process had died: %d", settled)
    if idle := heartbeats.keys() - {leases.process_of(turn.name) for turn in names}:
        await runner.database.transaction(functools.partial(leases.remove, processes=idle), repeatable=True)
    return settled


async def _look(session: AsyncSession) -> tuple[list[Row[*tuple[Any, ...]]], Mapping[str, int]]:
    # A row of another tool, or one that already has usage, keeps its content and figures.
    is_ours = and_(
        *(Message.role == "assistant", Message.turn.is_not(None)),
        *(func.coalesce(Message.content, "") == "", Message.input_tokens.is_(None)),
    )
    pending: Select[*tuple[Any, ...]] = select(
        Message.id,
        Message.turn,
        Message.user_id,
        Message.conversation_id,
        Message.model,
        is_ours.label("is_ours"),
        conversations.readable(session, Message.created_at),
    )
    rows = await session.execute(pending.where(Message.status == "pending").order_by(Message.id))
    return list(rows), await leases.heartbeats(session)


def _is_former(row: Row[*tuple[Any, ...]]) -> bool:
    """Return whether a turn of an earlier version is orphaned.

    The processes of that version have no leases, so that the age decides.
    """
    if leases.process_of(row.turn) is not None:
        return False
    return row.created_at is None or row.created_at < clock.now() - FORMER_AGE


async def _settle(runner: TurnRunner, turn: PendingTurn, row: Row[*tuple[Any, ...]]) -> bool:
    database, where = runner.database, (turn.user_id, row.conversation_id or "", turn.message_id)

    async def estimated() -> bool:
        asked = await runner.fitting(
            await database.read(lambda session: history.prompts(session, *where)), row.model or ""
        )
        outcome = Outcome("failed", "", row.model or "", await tokenizer.estimate(asked, ""))
        settle = functools.partial(runner.settle, turn=turn, outcome=outcome, is_owner=False)
        answered: Answered | None = await database.transaction(settle, repeatable=True)
        return answered is not None and not answered.is_earlier

    async def tokens() -> TokenCounts | None:
        return await database.read(lambda session: settlement.rough_tokens(session, *where))

    if not row.is_ours:
        return await settlement.uncounted(database, turn)
    return await settlement.settle(database, turn, runner.zone, estimated, tokens)
