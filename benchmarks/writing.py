"""Measure the storing of single messages inside this process.

The rows compare the service with and without counting, and with the old backend's ways.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

from sqlalchemy import extract, func, select, update

from app import clock
from app.clock import Month
from app.db.database import Session
from benchmarks import databases
from benchmarks.figures import Figure, Measure, Target, by_turns
from benchmarks.sizes import Sizes
from benchmarks.stages import Stage
from models import Message, UserMonthlyTokenUsage
from services.usage import token_usage

WRITERS = 8
# The old way is slow: for this many messages of our sample, it stores one.
OLD_WAY_SHARE = 20


def figures(stage: Stage, sizes: Sizes) -> Iterator[Figure]:
    """Yield all rows of a stage."""
    yield _counting(stage, sizes)
    yield _large_month(stage, sizes)
    yield _resummed(stage, sizes)
    yield _summed_per_request(stage, sizes)
    if not stage.is_sqlite:
        yield _one_month(stage, sizes)


def _counting(stage: Stage, sizes: Sizes) -> Figure:
    owners = stage.users.writers[:WRITERS]
    counted, uncounted = by_turns(
        sizes.repeats, _storing(stage, owners, sizes.stored), _without_counting(_storing(stage, owners, sizes.stored))
    )
    return Figure(
        what=f"storing one message with its count, {WRITERS} writers",
        database=stage.kind,
        unit="messages/s",
        ours=counted,
        floor_is="without counting",
        floor=uncounted,
        target=Target(">=", 0.65 if stage.is_sqlite else 0.8),
    )


def _large_month(stage: Stage, sizes: Sizes) -> Figure:
    large, small = by_turns(
        sizes.repeats,
        _seconds_each(stage, [stage.users.many], sizes.stored),
        _seconds_each(stage, [stage.users.writers[0]], sizes.stored),
    )
    return Figure(
        what=f"storing one message in a month of {stage.many:,}",
        database=stage.kind,
        unit="ms",
        ours=large,
        floor_is="in a month of few",
        floor=small,
        target=Target("<=", 1.1),
    )


def _resummed(stage: Stage, sizes: Sizes) -> Figure:
    few = max(1, sizes.stored // OLD_WAY_SHARE)
    old, ours = by_turns(
        min(sizes.repeats, 3),
        _without_counting(_seconds_each(stage, [stage.users.many], few, resum=True)),
        _seconds_each(stage, [stage.users.many], few),
    )
    return Figure(
        what=f"the old backend: summing the month of {stage.many:,} again with each message",
        database=stage.kind,
        unit="ms",
        ours=old,
        floor_is="ours",
        floor=ours,
    )


def _summed_per_request(stage: Stage, sizes: Sizes) -> Figure:
    old, ours = by_turns(
        min(sizes.repeats, 3),
        _reading(stage, _sums_of_messages(stage.users.many), 1),
        _reading(stage, _rollup(stage.users.many), 20),
    )
    return Figure(
        what=f"months of a user summed over {stage.many:,} messages at each request",
        database=stage.kind,
        unit="ms",
        ours=old,
        floor_is="months as ours are read",
        floor=ours,
    )


def _one_month(stage: Stage, sizes: Sizes) -> Figure:
    all_users = stage.users.writers
    one, many = by_turns(
        sizes.repeats,
        _storing(stage, all_users[:1] * len(all_users), sizes.stored),
        _storing(stage, all_users, sizes.stored),
    )
    return Figure(
        what=f"{len(all_users)} writers of one user's month",
        database=stage.kind,
        unit="messages/s",
        ours=one,
        floor_is=f"of {len(all_users)} users",
        floor=many,
    )


def _storing(stage: Stage, owners: Sequence[int], messages: int, *, resum: bool = False) -> Measure:
    """Measure messages per second, with one concurrent writer per owner."""

    async def write(owner: int, numbers: Iterator[int]) -> None:
        async def work(session: Session) -> None:
            await token_usage.record(session, databases.entry(owner, clock.now()), databases.ZONE)
            if resum:
                await _resum(session, owner)

        for _ in numbers:
            await stage.database.transaction(work)

    async def store() -> float:
        numbers = iter(range(messages))
        started = time.perf_counter()
        await asyncio.gather(*(write(owner, numbers) for owner in owners))
        return messages / (time.perf_counter() - started)

    return lambda: stage.run(store())


def _seconds_each(stage: Stage, owners: Sequence[int], messages: int, *, resum: bool = False) -> Measure:
    rate = _storing(stage, owners, messages, resum=resum)
    return lambda: 1000 / rate()


def _without_counting(measure: Measure) -> Measure:
    def measure_without() -> float:
        with mock.patch.object(token_usage, "_count"):
            return measure()

    return measure_without


async def _resum(session: Session, user_id: int) -> None:
    month, message, table = Month.of(clock.now().date()), Message, UserMonthlyTokenUsage
    counted = (message.user_id == user_id, message.usage_date.between(month.first_day, month.last_day))
    sums: dict[str, Any] = {
        "input_tokens": func.sum(message.input_tokens),
        "output_tokens": func.sum(message.output_tokens),
        "total_tokens": func.sum(message.input_tokens + message.output_tokens),
        "total_cost": func.sum(message.cost),
        "message_count": func.count(),
    }
    row = (await session.execute(select(*(value.label(name) for name, value in sums.items())).where(*counted))).one()
    here = (table.user_id == user_id, table.year == month.year, table.month == month.month)
    await session.execute(update(table).where(*here).values(**row._mapping))


def _reading(stage: Stage, statement: Any, times: int) -> Measure:
    async def read() -> float:
        started = time.perf_counter()
        for _ in itertools.repeat(None, times):
            await stage.database.read(lambda session: session.execute(statement))
        return (time.perf_counter() - started) / times * 1000

    return lambda: stage.run(read())


def _sums_of_messages(user_id: int) -> Any:
    month = (extract("year", Message.usage_date), extract("month", Message.usage_date))
    figures = (func.sum(Message.input_tokens), func.sum(Message.output_tokens), func.sum(Message.cost), func.count())
    counted = (Message.user_id == user_id, Message.usage_date.is_not(None))
    return select(*month, *figures).where(*counted).group_by(*month)


def _rollup(user_id: int) -> Any:
    table = UserMonthlyTokenUsage.__table__
    return select(table).where(table.c.user_id == user_id)
