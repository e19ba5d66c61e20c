"""Transactions that meet others or lose their connection: run again, and counted once."""

import asyncio
import sqlite3
import time
from datetime import UTC, datetime
from fractions import Fraction

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.db.database import Session
from services.usage import token_usage
from services.usage.token_usage import Entry, Usage
from tests.support.accounts import Caller
from tests.support.invariants import Totals
from tests.support.outages import CUT_OFF_WHO_WAITS, DEADLINE_SECONDS, ONCE, Application, only_postgresql, served

__all__ = ["served"]

pytestmark = pytest.mark.long

JUNE = datetime(2024, 6, 15, 12, tzinfo=UTC)


def entry(owner: Caller) -> Entry:
    return Entry(user_id=owner.id, role="assistant", created_at=JUNE, usage=Usage(input_tokens=10, output_tokens=5))


def conflict(kind: str) -> Exception:
    """What the driver raises when another transaction stands in the way."""
    error: Exception
    if kind == "postgresql":
        error = asyncpg.DeadlockDetectedError("deadlock detected")
        return error
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return error


@pytest.mark.parametrize("wrapped", [True, False])
async def test_a_transaction_that_met_another_is_run_again_and_counted_once(
    served: Application, kind: str, wrapped: bool
) -> None:
    attempts = 0

    async def work(session: Session) -> None:
        nonlocal attempts
        attempts += 1
        await token_usage.record(session, entry(served.ayu), UTC)
        if attempts == 1:
            raise DBAPIError("a statement", None, conflict(kind)) if wrapped else conflict(kind)

    await served.database.transaction(work)
    assert attempts == 2
    assert await served.months() == [ONCE]


async def test_a_transaction_that_always_meets_another_gives_up(served: Application, kind: str) -> None:
    attempts = 0

    async def work(session: Session) -> None:
        nonlocal attempts
        attempts += 1
        await token_usage.record(session, entry(served.ayu), UTC)
        raise conflict(kind)

    with pytest.raises(type(conflict(kind))):
        await served.database.transaction(work)
    assert 3 <= attempts <= 10
    assert await served.months() == []


async def test_a_mistake_is_not_run_again(served: Application) -> None:
    attempts = 0

    async def work(session: Session) -> None:
        nonlocal attempts
        attempts += 1
        await token_usage.record(session, entry(served.ayu), UTC)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await served.database.transaction(work)
    assert attempts == 1
    assert await served.months() == []


@only_postgresql
async def test_of_two_transactions_in_deadlock_both_are_counted_once(served: Application) -> None:
    attempts: list[Caller] = []
    reached = {served.ayu: asyncio.Event(), served.service: asyncio.Event()}

    async def record_both(first: Caller, second: Caller) -> None:
        async def work(session: Session) -> None:
            attempts.append(first)
            await token_usage.record(session, entry(first), UTC)
            reached[first].set()
            await reached[second].wait()
            await token_usage.record(session, entry(second), UTC)

        await served.database.transaction(work)

    await asyncio.gather(record_both(served.ayu, served.service), record_both(served.service, served.ayu))
    assert len(attempts) > 2
    assert await served.months() == [Totals(20, 10, 30, Fraction(0), 2)] * 2


@only_postgresql
async def test_a_serialization_failure_is_run_again_and_counted_once(served: Application) -> None:
    attempts = 0

    async def record(session: Session) -> None:
        await token_usage.record(session, entry(served.ayu), UTC)

    async def work(session: Session) -> None:
        nonlocal attempts
        attempts += 1
        await session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        await session.execute(text("SELECT 1 FROM messages"))
        if attempts == 1:
            await served.database.transaction(record)
        await record(session)

    await served.database.transaction(record)
    await served.database.transaction(work)
    assert attempts == 2
    assert await served.months() == [Totals(30, 15, 45, Fraction(0), 3)]


@only_postgresql
async def test_a_request_with_a_cut_connection_is_rerun_and_counts_once(served: Application, database_url: str) -> None:
    other = await asyncpg.connect(database_url)
    try:
        async with other.transaction():
            await other.execute("SELECT 1 FROM users FOR UPDATE")
            sending = asyncio.create_task(served.send("once"))
            deadline = time.monotonic() + DEADLINE_SECONDS
            while not await other.fetch(CUT_OFF_WHO_WAITS):
                assert time.monotonic() < deadline, "no session waits for the lock"
                await asyncio.sleep(0.01)
        assert (await sending).json() == {"recorded": 1, "duplicates": 0}
    finally:
        await other.close()
    assert await served.months() == [ONCE]


@only_postgresql
async def test_after_a_failover_new_connections_are_opened(served: Application) -> None:
    for _ in range(3):
        async with served.database.engine.connect() as connection:
            await connection.execute(text("SET default_transaction_read_only = on"))
            await connection.commit()
    assert (await served.send("once")).json() == {"recorded": 1, "duplicates": 0}
    assert await served.months() == [ONCE]
