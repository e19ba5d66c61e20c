"""The backfill beside live traffic, beside itself, and broken off at any point: exact every time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC
from typing import Any

import pytest
from sqlalchemy import delete

from app.clock import Month
from app.db import migrations
from app.db.database import Database, is_sqlite
from app.db.engines import READ_ONLY
from models import UserMonthlyTokenUsage
from services import backfill
from services.accounts import users
from services.backfill import Policy, Scope, deficits, reconciliation
from services.usage import full_runs, rollups, token_usage
from services.usage.rollups import Sums
from services.usage.token_usage import Entry
from tests.support import invariants, old_databases
from tests.support.backfilling import (
    MONTHS,
    USAGE,
    UTC_ZONE,
    add_users,
    count,
    execute,
    record,
    run,
    silent,
    until,
    waiting,
    write_as_an_old_process,
)
from tests.support.ledger_machine import Died, dying

DAMAGE = (
    "DELETE FROM user_monthly_token_usage WHERE (user_id + month) % 3 = 0",
    "UPDATE user_monthly_token_usage SET input_tokens = input_tokens + 5, total_tokens = total_tokens + 5"
    " WHERE (user_id + month) % 3 = 1",
    "UPDATE user_monthly_token_usage SET total_cost = 0, message_count = 0 WHERE (user_id + month) % 2 = 0",
    "INSERT INTO user_monthly_token_usage (user_id, year, month, input_tokens, output_tokens, total_tokens,"
    " total_cost, message_count) SELECT id, 2019, 7, 1, 2, 3, 4, 5 FROM users",
)
DAMAGE_BELOW = ("UPDATE user_daily_token_usage SET message_count = message_count + 1",)


async def test_runs_beside_live_writers_are_exact(database: Database) -> None:
    owners = await add_users(database, 5)
    rounds = 4

    async def write(turn: int) -> None:
        for i in range(rounds * 3):
            await record(database, owners[turn:] + owners[:turn], MONTHS[i % 3 :])
            await record(database, [owners[turn]], MONTHS[:1])

    async def mend() -> None:
        for _ in range(rounds):
            await execute(database, *DAMAGE)
            await write_as_an_old_process(database, owners[0])
            await asyncio.gather(run(database), run(database, batch_size=5))

    await asyncio.gather(mend(), *(write(turn) for turn in range(5)))
    written = 5 * rounds * ((4 + 3 + 2) * 5 + 3)
    assert await count(database) == 5 * 4 + written + rounds


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_run_that_meets_writers_in_a_deadlock_goes_on(database: Database) -> None:
    """The writer holds a month that is to be changed and then wants one that the run is making."""
    first, second = await add_users(database, 2)
    await execute(
        database,
        f"DELETE FROM user_monthly_token_usage WHERE user_id = {second}",
        f"UPDATE user_monthly_token_usage SET message_count = 9 WHERE user_id = {first}",
    )
    met = False

    async def write(session: Any) -> None:
        nonlocal met
        for owner in (first, second):
            entries = [Entry(user_id=owner, role="assistant", created_at=MONTHS[0], usage=USAGE)]
            await token_usage.record_all(session, entries, UTC)
            if not met:
                met = True
                holding.set()
                await until(lambda: waiting(database))

    holding = asyncio.Event()
    writing = asyncio.create_task(database.transaction(write))
    await holding.wait()
    await asyncio.gather(run(database), writing)
    assert await count(database) == 2 * 4 + 2


async def test_a_user_who_is_deleted_during_a_run_stops_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await add_users(database, 2)
    await execute(database, "DELETE FROM user_monthly_token_usage")
    read: list[object] = []

    async def delete_the_first() -> None:
        read.append(None)
        if len(read) == 1:
            await database.transaction(lambda session: users.delete(session, first))

    pause_after_reading(monkeypatch, delete_the_first)
    await run(database, batch_size=10)
    assert {owner for owner, _ in await invariants.check(database)} == {second}


def pause_after_reading(
    monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], Awaitable[None]], *, locked: bool = True
) -> None:
    """Lets others commit after a run has read both sides; also after it did so under its lock, if wanted.

    On SQLite that lock keeps all writers out.
    """
    read = deficits.read

    async def paused(session: Any, key_range: Any) -> Any:
        found = await read(session, key_range)
        only_reads = (await session.connection()).sync_connection.get_execution_options().get(READ_ONLY, False)
        if only_reads or (locked and not is_sqlite(session)):
            await meanwhile()
        return found

    monkeypatch.setattr(deficits, "read", paused)


async def overwrite(session: Any, found: Any, _plans: Any) -> None:
    """What the backfill does not do: sets each month to the sum that was read."""
    for (owner, month), pair in found.months.items():
        table = UserMonthlyTokenUsage
        here = (table.user_id == owner, table.year == month.year, table.month == month.month)
        await session.execute(delete(table).where(*here))
        if pair.expected != Sums():
            await rollups.add_months(session, {(owner, month): pair.expected})


@pytest.mark.parametrize("damage", [DAMAGE_BELOW, DAMAGE], ids=["months right", "months damaged"])
async def test_a_writer_between_a_runs_read_and_its_write_counts(
    database: Database, monkeypatch: pytest.MonkeyPatch, damage: Sequence[str]
) -> None:
    owners = await add_users(database, 3)
    await execute(database, *damage)
    times = 0

    async def write() -> None:
        nonlocal times
        times += 1
        await record(database, owners)

    pause_after_reading(monkeypatch, write)
    await run(database, batch_size=10)
    assert await count(database) == (1 + times) * 3 * 4


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_the_same_writer_is_lost_where_sums_are_written(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: months are set to the sums that were read, instead of getting what they lack."""
    owners = await add_users(database, 3)
    await execute(database, *DAMAGE)
    monkeypatch.setattr(reconciliation, "_correct_months", overwrite)
    pause_after_reading(monkeypatch, lambda: record(database, owners))
    await run(database, batch_size=10)
    with pytest.raises(AssertionError, match="the rollup has"):
        await count(database)
    monkeypatch.undo()
    await run(database)
    await count(database)


@pytest.mark.parametrize("other", ["run", "redating"])
async def test_a_run_between_another_ones_read_and_lock_is_seen(
    database: Database, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Both runs found the same deficits, and would add them twice."""
    await add_users(database, 2)
    await execute(database, *DAMAGE, *DAMAGE_BELOW)
    read = 0

    async def another() -> None:
        nonlocal read
        read += 1
        if read == 1 and other == "run":
            await run(database, batch_size=10)
        elif read == 1:
            await backfill.redate(database, UTC_ZONE, silent)

    pause_after_reading(monkeypatch, another, locked=False)
    await run(database, batch_size=10)
    assert read
    assert await count(database) == 2 * 4


@pytest.mark.long
async def test_a_run_killed_at_any_point_is_finished_by_the_next(database: Database) -> None:
    owners = await add_users(database, 3)
    killed = 0
    while True:
        await execute(database, *DAMAGE)
        await write_as_an_old_process(database, owners[0])
        try:
            with dying(database, killed):
                await run(database)
        except Died:
            killed += 1
            await run(database)
            assert await count(database) == 3 * 4 + killed
        else:
            break
    assert killed > 20
    assert await count(database) == 3 * 4 + killed + 1


async def test_a_run_of_some_users_and_months_leaves_the_others_as_they_are(database: Database) -> None:
    first, second = await add_users(database, 2)
    await execute(database, "UPDATE user_monthly_token_usage SET message_count = 9")
    await run(database, scope=Scope([first], Month(2024, 2), Month(2024, 3)))
    report = await backfill.verify(database, Scope(), 10, UTC_ZONE, Policy(), silent)
    assert {(item.user_id, item.month.month) for item in report.differences} == {
        *((first, month) for month in (1, 4)),
        *((second, month) for month in (1, 2, 3, 4)),
    }
    assert {(item.field, item.expected, item.found) for item in report.differences} == {("message_count", 1, 9)}
    await run(database)
    assert await count(database) == 2 * 4


@pytest.mark.any_database
async def test_an_old_database_is_due_until_a_run_over_all_of_it(empty_database_url: str) -> None:
    old = await asyncio.to_thread(old_databases.build, empty_database_url, 3, rows=20)
    await migrations.upgrade(old.url)
    database = Database.open(old.url)
    assert await database.read(full_runs.is_due)
    await run(database, scope=Scope([old_databases.USERS[0]]))
    assert await database.read(full_runs.is_due)
    await run(database)
    assert not await database.read(full_runs.is_due), "also where rows are left that nobody owns"
    await database.close()


async def test_a_new_database_is_not_due(database: Database) -> None:
    await add_users(database, 1)
    assert not await database.read(full_runs.is_due)
