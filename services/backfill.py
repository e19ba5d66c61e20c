"""The backfill service: makes the monthly rollup equal to the messages, and says where it is not.

A live transaction adds the same amount to the ledger and to the rollup. So the deficit of a (user, month), the sum of
its messages less its rollup, is the same in every snapshot, whatever live traffic does. One statement reads both sides
from one snapshot; the deficit is then added, the way live usage is added. Reading alone is the dry run and the
verification.
"""

import functools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from datetime import tzinfo
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Select,
    and_,
    column,
    extract,
    func,
    literal,
    select,
    table,
    text,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncSession

from app import money
from app.clock import Month
from app.database import Database, T, Work, is_sqlite
from models import Message, UserMonthlyTokenUsage
from services import adoption, token_usage, usage_zone
from services.adoption import Reason, Shape
from services.token_usage import FIGURES, Sums, UserMonth

Rollup = UserMonthlyTokenUsage
DEFAULT_BATCH_SIZE = 200
BEFORE_ANY_ID = -(2**31)
_ADVISORY_LOCK = 7_102_024_002


@dataclass(frozen=True)
class Scope:
    """Which users (all where None) and which months, both ends included."""

    users: Collection[int] | None = None
    since: Month | None = None
    until: Month | None = None

    def includes(self, month: Month) -> bool:
        """Whether a month is in the scope."""
        return (self.since is None or self.since <= month) and (self.until is None or month <= self.until)


class Difference(NamedTuple):
    """A field of a month that is not what the messages say; None stands for a month that is not there."""

    user_id: int
    month: Month
    field: str
    expected: int | Decimal | None
    found: int | Decimal | None


@dataclass
class Report:
    """What was found in the messages, and what was done, or would be done, to the rollup."""

    users: int = 0
    months: int = 0
    messages: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_cost: Decimal = money.ZERO
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: Counter[Reason] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)


class Progress(NamedTuple):
    """Where a run stands: so many of so many, of messages or of users."""

    phase: str
    unit: str
    done: int
    total: int


Listener = Callable[[Progress], None]


@dataclass
class _Pair:
    """Both sides of one (user, month): the sum of its messages, and its rollup, if there is one."""

    expected: Sums = field(default_factory=Sums)
    found: Sums | None = None
    found_total_tokens: int | None = None  # where an old rollup contradicts itself

    @property
    def is_even(self) -> bool:
        return self.found_total_tokens is None and self.expected == (self.found or Sums())

    def figures_found(self, name: str) -> int | Decimal | None:
        if name == "total_tokens" and self.found_total_tokens is not None:
            return self.found_total_tokens
        found: int | Decimal | None = getattr(self.found, name, None)
        return found


Pairs = dict[UserMonth, _Pair]


async def run(database: Database, scope: Scope, batch_size: int, zone: tzinfo, listener: Listener) -> Report:
    """Adopts old rows, then sets every (user, month) of the scope right, a batch of users a transaction.

    Safe beside live traffic and beside other runs, safe to be killed at any point; run again, it finds nothing to do.
    The database must be at the newest schema.
    """
    report = Report()
    shape = await database.read(adoption.shape_of)
    await _adopt(database, shape, scope, zone, report, listener)
    async for users, done, total in _user_batches(database, scope, batch_size):
        pairs = await _exclusively(database, functools.partial(_even_out, shape=shape, scope=scope, users=users))
        _tally(report, pairs)
        listener(Progress("counting", "users", done, total))
    return report


async def redate(database: Database, zone: ZoneInfo, listener: Listener) -> int:
    """Dates every counted message by this zone and moves its usage to its month; returns how many changed their day.

    The rollup equals the messages at every commit. Servers that still run with another zone must be stopped before.
    """
    counted = select(func.count()).where(Message.usage_date.is_not(None))
    total = await database.read(lambda session: session.scalar(counted)) or 0
    await _exclusively(database, functools.partial(usage_zone.begin_redating, zone=zone))
    after_id, done, redated = BEFORE_ANY_ID, 0, 0
    while True:
        work = functools.partial(usage_zone.redate_batch, after_id=after_id, zone=zone)
        batch = await _exclusively(database, work)
        if batch is None:
            return redated
        after_id, done, redated = batch.last_id, done + batch.rows, redated + batch.redated
        listener(Progress("redating", "messages", done, max(done, total)))


async def compare(database: Database, scope: Scope, batch_size: int, zone: tzinfo, listener: Listener) -> Report:
    """Says what `run` would do, and lists every difference. Writes nothing, also to a database of an old schema."""
    report = Report()
    shape = await database.read(adoption.shape_of)
    if not shape.has_messages:
        return report
    async with database.reads() as session:
        old = await _old_sums(session, shape, scope, zone, report, listener)
    async for users, done, total in _user_batches(database, scope, batch_size):
        pairs = await database.read(functools.partial(_compare, shape=shape, scope=scope, users=users))
        for key in [key for key in old if users.first <= key[0] <= users.last]:
            pair = pairs.setdefault(key, _Pair())
            pair.expected += old.pop(key)
        _tally(report, pairs)
        report.differences += [item for key in sorted(pairs) for item in _differences(key, pairs[key])]
        listener(Progress("comparing", "users", done, total))
    return report


async def _adopt(
    database: Database, shape: Shape, scope: Scope, zone: tzinfo, report: Report, listener: Listener
) -> None:
    total = await database.read(functools.partial(adoption.count, shape=shape, users=scope.users))
    after_id, done = BEFORE_ANY_ID, 0
    while True:
        work = functools.partial(adoption.adopt_batch, shape=shape, users=scope.users, after_id=after_id, zone=zone)
        batch = await _exclusively(database, work)
        if batch is None:
            return
        after_id, done = batch.last_id, done + batch.rows
        report.skipped += batch.skipped
        listener(Progress("adopting", "messages", done, max(done, total)))


async def _old_sums(
    session: AsyncSession, shape: Shape, scope: Scope, zone: tzinfo, report: Report, listener: Listener
) -> dict[UserMonth, Sums]:
    total = await adoption.count(session, shape, scope.users)
    sums: dict[UserMonth, Sums] = {}
    done = 0
    async for finding in adoption.findings(session, shape, scope.users, zone):
        done += 1
        if finding.reason is not None:
            report.skipped[finding.reason] += 1
        if finding.usage is not None and finding.user_id is not None:
            month = Month.of(finding.usage.usage_date)
            if scope.includes(month):
                usage = token_usage.Usage(
                    input_tokens=finding.usage.input_tokens,
                    output_tokens=finding.usage.output_tokens,
                    cost=finding.usage.cost,
                )
                sums.setdefault((finding.user_id, month), Sums()).add(usage)
        if done % adoption.BATCH_ROWS == 0 or done == total:
            listener(Progress("reading", "messages", done, max(done, total)))
    return sums


class _Users(NamedTuple):
    """A range of user ids, both ends included, and the wanted ones among them."""

    first: int
    last: int
    only: Collection[int] | None

    def holds(self, user_id: ColumnElement[int]) -> ColumnElement[bool]:
        if self.only is not None:
            return user_id.in_(self.only)
        return user_id.between(self.first, self.last)


async def _user_batches(database: Database, scope: Scope, batch_size: int) -> AsyncIterator[tuple[_Users, int, int]]:
    users = table("users", column("id", Integer))
    wanted = users.c.id.in_(scope.users) if scope.users is not None else true()
    last, done = BEFORE_ANY_ID, 0
    async with database.reads() as session:
        total = await session.scalar(select(func.count()).select_from(users).where(wanted)) or 0
    while True:
        statement = select(users.c.id).where(users.c.id > last, wanted).order_by(users.c.id).limit(batch_size)
        async with database.reads() as session:
            ids = (await session.scalars(statement)).all()
        if not ids:
            return
        first, last, done = last + 1, ids[-1], done + len(ids)
        yield _Users(first, last, ids if scope.users is not None else None), done, max(done, total)


async def _exclusively(database: Database, work: Work[T]) -> T:
    """Runs the work in a transaction while no other run is in one; all of it again after a deadlock or an outage."""

    async def locked(session: AsyncSession) -> T:
        await _become_the_only_run(session)
        return await work(session)

    return await database.transaction(locked, repeatable=True)


async def _even_out(session: AsyncSession, shape: Shape, scope: Scope, users: _Users) -> Pairs:
    pairs = await _compare(session, shape, scope, users)
    await _apply(session, pairs)
    return pairs


async def _become_the_only_run(session: AsyncSession) -> None:
    """Waits until no other run is in a transaction of this kind: two would add the same deficit twice.

    A statement of its own, before the one that compares: that one's snapshot must be taken after the lock was got. On
    SQLite the transaction is the only writing one already.
    """
    if not is_sqlite(session):
        await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})


async def _compare(session: AsyncSession, shape: Shape, scope: Scope, users: _Users) -> Pairs:
    """Reads both sides of every (user, month) in one statement, so from one snapshot."""
    sides = []
    if shape.is_adopted:
        sides = [_ledger_side(scope, users), _rollup_side(scope, users)]
    elif shape.has_rollup:
        return await _old_rollup(session, scope, users)
    pairs: Pairs = {}
    if sides:
        for row in await session.execute(union_all(*sides)):
            pair = pairs.setdefault((row.user_id, Month(int(row.year), int(row.month))), _Pair())
            if row.side == "ledger":
                pair.expected = _sums(row)
            else:
                pair.found = _sums(row)
    return pairs


def _ledger_side(scope: Scope, users: _Users) -> Select[*tuple[Any, ...]]:
    year, month = extract("year", Message.usage_date), extract("month", Message.usage_date)
    counted = [users.holds(Message.__table__.c.user_id), Message.usage_date.is_not(None)]
    if scope.since:
        counted.append(Message.usage_date >= scope.since.first_day)
    if scope.until:
        counted.append(Message.usage_date <= scope.until.last_day)
    return (
        select(
            literal("ledger").label("side"),
            Message.user_id,
            year.label("year"),
            month.label("month"),
            func.sum(Message.input_tokens).label("input_tokens"),
            func.sum(func.coalesce(Message.output_tokens, 0)).label("output_tokens"),
            func.coalesce(func.sum(Message.cost), money.ZERO).label("total_cost"),
            func.count().label("message_count"),
        )
        .where(*counted)
        .group_by(Message.user_id, year, month)
    )


def _rollup_side(scope: Scope, users: _Users) -> Select[*tuple[Any, ...]]:
    return select(
        literal("rollup").label("side"),
        Rollup.user_id,
        Rollup.year,
        Rollup.month,
        Rollup.input_tokens,
        Rollup.output_tokens,
        Rollup.total_cost,
        Rollup.message_count,
    ).where(_in_rollup_scope(Rollup.__table__.c, scope, users))


async def _old_rollup(session: AsyncSession, scope: Scope, users: _Users) -> Pairs:
    """The rollup of an old database as it is: nulls, floats, and totals that may contradict their parts."""
    old = table("user_monthly_token_usage", *(column(name) for name in ("user_id", "year", "month", *FIGURES)))
    pairs: Pairs = {}
    present = old.c.user_id.in_(select(column("id")).select_from(table("users")))  # the others go with the upgrade
    for row in await session.execute(select(old).where(_in_rollup_scope(old.c, scope, users), present)):
        if not isinstance(row.year, int) or row.month not in range(1, 13):
            continue
        found = Sums(
            _whole(row.input_tokens), _whole(row.output_tokens), _cost(row.total_cost), _whole(row.message_count)
        )
        total = _whole(row.total_tokens)
        pair = _Pair(found=found, found_total_tokens=total if total != found.total_tokens else None)
        pairs[row.user_id, Month(row.year, row.month)] = pair
    return pairs


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _cost(value: Any) -> Decimal:
    try:
        return money.from_float(float(value))
    except (TypeError, ValueError):
        return money.ZERO


def _in_rollup_scope(columns: Any, scope: Scope, users: _Users) -> ColumnElement[bool]:
    wanted = [users.holds(columns.user_id)]
    year_month = tuple_(columns.year, columns.month)
    if scope.since:
        wanted.append(year_month >= tuple_(*scope.since))
    if scope.until:
        wanted.append(year_month <= tuple_(*scope.until))
    return and_(*wanted)


def _sums(row: Row[*tuple[Any, ...]]) -> Sums:
    return Sums(int(row.input_tokens), int(row.output_tokens), row.total_cost, int(row.message_count))


async def _apply(session: AsyncSession, pairs: Pairs) -> None:
    """Adds the deficits: to months that are missing as live usage is added, to the others whatever the sign."""
    await token_usage.add(session, {key: pair.expected for key, pair in pairs.items() if _is_missing(pair)})
    uneven = {key: pair for key, pair in pairs.items() if pair.found is not None and not pair.is_even}
    await token_usage.adjust(session, {key: pair.expected - (pair.found or Sums()) for key, pair in uneven.items()})


def _is_missing(pair: _Pair) -> bool:
    return pair.found is None and not pair.is_even


def _tally(report: Report, pairs: Pairs) -> None:
    report.users += len({user_id for (user_id, _), pair in pairs.items() if pair.expected.message_count})
    for pair in pairs.values():
        report.months += pair.expected.message_count > 0
        report.messages += pair.expected.message_count
        report.input_tokens += pair.expected.input_tokens
        report.output_tokens += pair.expected.output_tokens
        report.total_cost += pair.expected.total_cost
        report.created += _is_missing(pair)
        report.updated += pair.found is not None and not pair.is_even
        report.unchanged += pair.is_even


def _differences(key: UserMonth, pair: _Pair) -> list[Difference]:
    if pair.is_even:
        return []
    expected = pair.expected if pair.expected != Sums() else None
    compared = [(name, getattr(expected, name, None), pair.figures_found(name)) for name in FIGURES]
    return [Difference(*key, name, should, found) for name, should, found in compared if should != found]
