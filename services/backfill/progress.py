"""Report the progress of long work."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, select, tuple_

from app.db.database import Database
from models import Message, UserMonthlyTokenUsage
from services.backfill.key_ranges import Scope, lowest_id
from services.usage import full_runs


class Progress(NamedTuple):
    """Describe a phase: `done` of `total` messages.

    A run has committed the messages that are done.
    """

    phase: str
    done: int
    total: int


Listener = Callable[[Progress], None]
"""Receives the progress after each committed step. An exception from the listener ends the run."""


async def to_count(database: Database, scope: Scope) -> int:
    """Return how many messages the work will count.

    The number comes from the monthly rollup if a full run has filled it, which is faster.
    """
    since, until = scope.days()
    statement = select(func.count()).select_from(Message).where(Message.usage_date.between(since, until))
    owner: ColumnElement[Any] = Message.user_id.expression
    if not await database.read(full_runs.is_due):
        month = UserMonthlyTokenUsage
        within = tuple_(month.year, month.month).between((since.year, since.month), (until.year, until.month))
        statement = select(func.sum(month.message_count)).where(within)
        owner = month.user_id.expression
    of_users = owner >= lowest_id(database) if scope.users is None else owner.in_(scope.users)
    return int(await database.scalar(statement.where(of_users)) or 0)
