"""Progress: how far long work has come, and of how much."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, select, tuple_

from app.db.database import Database
from models import Message, UserMonthlyTokenUsage
from services.backfill import full_runs
from services.backfill.key_ranges import Scope, lowest_id


class Progress(NamedTuple):
    """How many messages of a phase are done, of how many. What is done is committed."""

    phase: str
    done: int
    total: int


Listener = Callable[[Progress], None]
"""Is told of every step that was done for good; what it raises ends the run there."""


async def to_count(database: Database, scope: Scope) -> int:
    """How many messages there are to count; as the rollup says where it was filled once."""
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
