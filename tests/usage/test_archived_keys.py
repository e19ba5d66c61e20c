"""Requests that are repeated after their messages were archived: each is counted once, for ever."""

import asyncio
import functools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.clock import Month
from app.db.database import Database
from app.errors import Conflict
from models import Feedback, Message
from services.backfill import archive_lines, archiving
from services.backfill.archive_files import Writer
from services.backfill.archiving import Old
from services.usage import archived_keys, token_usage
from services.usage import records as usage_records
from services.usage.pricing import PriceList
from services.usage.records import Recorded, UsageRecord
from services.usage.token_usage import Entry, Usage
from tests.support import invariants, problems, raw_sql, records
from tests.support.accounts import Caller
from tests.support.commands import migrate

OLD = Old(Month(2024, 7), None, ZoneInfo("UTC"))
AT = datetime(2024, 6, 15, 12, tzinfo=UTC)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    """A writer of a file that nothing reads."""
    writer = Writer(tmp_path, "2024-07")
    yield writer
    writer.finish()


async def archive(url: str, directory: Path, *flags: str) -> None:
    mode = flags or ("--archive-before", "2024-07", "--to", str(directory / "files"))
    assert (await asyncio.to_thread(migrate, url, *mode, "--quiet")).code == 0


async def make_old(url: str) -> None:
    """Makes all messages look old."""
    day = "usage_date = CASE WHEN usage_date IS NULL THEN NULL ELSE {} END"
    days = day.format("'2024-06-15'" if url.startswith("sqlite") else "date '2024-06-15'")
    statement = f"UPDATE messages SET created_at = '2024-06-15 12:00:00.000000', {days}"
    gone = (f"DELETE FROM user_{name}_token_usage" for name in ("daily", "monthly"))
    await asyncio.to_thread(raw_sql.run, url, statement, *gone)
    await asyncio.to_thread(raw_sql.run, url, "INSERT INTO messages (role, user_id) SELECT 'user', min(id) FROM users")
    assert (await asyncio.to_thread(migrate, url, "--quiet")).code == 0


async def test_an_archived_record_is_still_a_duplicate(
    client: httpx.AsyncClient, database: Database, database_url: str, ayu: Caller, service: Caller, tmp_path: Path
) -> None:
    sent = records.record(ayu, created_at="2024-06-15T12:00:00Z", cost=0.25)
    others = [records.record(ayu, created_at="2024-06-15T12:00:00Z") for _ in range(3)]
    await records.store(client, service, [sent, *others])
    before = await invariants.check(database)
    await archive(database_url, tmp_path)
    for _ in range(2):
        again = await records.post(client, service, [sent, *others])
        assert again.json() == {"recorded": 0, "duplicates": 4}
        for change in ({"input_tokens": 11}, {"cost": 0.5}, {"created_at": "2024-06-16T12:00:00Z"}, {"model": "x"}):
            problems.check(await records.post(client, service, [sent | change]), 409)
        assert await invariants.check(database) == before
        await archive(database_url, tmp_path, "--import-archive", str(tmp_path / "files"))


async def test_a_new_record_beside_archived_ones_counts(
    client: httpx.AsyncClient, database: Database, database_url: str, ayu: Caller, service: Caller, tmp_path: Path
) -> None:
    sent = records.record(ayu, created_at="2024-06-15T12:00:00Z")
    await records.store(client, service, [sent, records.record(ayu, created_at="2024-06-15T12:00:00Z")])
    await archive(database_url, tmp_path)
    both = await records.post(client, service, [records.record(ayu), sent, records.record(ayu)])
    assert both.json() == {"recorded": 2, "duplicates": 1}
    assert sum(month.message_count for month in (await invariants.check(database)).values()) == 4


@pytest.mark.any_database
async def test_an_archived_answer_is_gone(
    client: httpx.AsyncClient, database: Database, database_url: str, ayu: Caller, tmp_path: Path
) -> None:
    headers, body = ayu.headers | {"Idempotency-Key": "once"}, {"message": "Hi", "stream": False}
    answer = (await client.post("/chat", headers=headers, json=body)).json()
    await make_old(database_url)
    before = await invariants.check(database)
    await archive(database_url, tmp_path)
    for stream in (True, False):
        problems.check(await client.post("/chat", headers=headers, json=body | {"stream": stream}), 410)
    other = await client.post("/chat", headers=headers, json=body | {"message": "Ho"})
    assert problems.check(other, 422)["errors"].keys() == {"Idempotency-Key"}
    assert await invariants.check(database) == before
    await archive(database_url, tmp_path, "--import-archive", str(tmp_path / "files"))
    again = (await client.post("/chat", headers=headers, json=body)).json()
    assert again["message"]["id"] == answer["message"]["id"]


@pytest.mark.any_database
async def test_a_conversation_goes_on_after_its_messages(
    client: httpx.AsyncClient, database: Database, database_url: str, ayu: Caller, tmp_path: Path
) -> None:
    first = (await client.post("/chat", headers=ayu.headers, json={"message": "Hi", "stream": False})).json()
    await make_old(database_url)
    await archive(database_url, tmp_path)
    path = f"/conversations/{first['conversation_id']}"
    assert (await client.get(path, headers=ayu.headers)).json()["messages"] == []
    body = {"message": "Ho", "stream": False, "conversation_id": first["conversation_id"]}
    assert (await client.post("/chat", headers=ayu.headers, json=body)).status_code == 200
    assert len((await client.get(path, headers=ayu.headers)).json()["messages"]) == 2
    await archive(database_url, tmp_path, "--import-archive", str(tmp_path / "files"))
    assert len((await client.get(path, headers=ayu.headers)).json()["messages"]) == 4
    assert len(await invariants.check(database)) == 2


async def record(database: Database, ayu: Caller, input_tokens: int) -> Recorded:
    owned = functools.partial(UsageRecord, id="r", user_id=ayu.id, model="m", created_at=AT)
    sent = owned(input_tokens=input_tokens, output_tokens=5)
    work = functools.partial(usage_records.record, records=[sent], prices=PriceList(), zone=UTC)
    return await database.transaction(work)


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("outcome", ["commit", "rollback"])
async def test_a_replay_during_archiving_counts_once(
    database: Database, ayu: Caller, writer: Writer, outcome: str
) -> None:
    await record(database, ayu, input_tokens=10)
    before = await invariants.check(database)
    async with database.sessions() as session:
        await session.begin()
        ids = (await session.scalars(select(Message.id))).all()
        assert await archiving._move(session, OLD, await archive_lines.tables(session), ids, writer) == 1
        replay = asyncio.create_task(record(database, ayu, input_tokens=10))
        other = asyncio.create_task(record(database, ayu, input_tokens=11))
        await until_waiting(database, 2)
        await getattr(session, outcome)()
    assert await replay == Recorded(0, 1)
    with pytest.raises(Conflict):
        await other
    assert await invariants.check(database) == before


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_feedback_during_archiving_finds_no_message(
    database: Database, client: httpx.AsyncClient, ayu: Caller, database_url: str, writer: Writer
) -> None:
    answer = (await client.post("/chat", headers=ayu.headers, json={"message": "Hi", "stream": False})).json()
    await make_old(database_url)
    async with database.sessions() as session:
        await session.begin()
        ids = (await session.scalars(select(Message.id))).all()
        assert await archiving._move(session, OLD, await archive_lines.tables(session), ids, writer) == 2
        body = {"message_id": answer["message"]["id"], "feedback_type": "like"}
        liked = asyncio.create_task(client.post("/feedback", headers=ayu.headers, json=body))
        await until_waiting(database, 1)
        await session.commit()
    problems.check(await liked, 404)
    assert await database.scalar(select(Feedback.id)) is None


async def until_waiting(database: Database, sessions: int) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    for _ in range(500):
        async with database.engine.connect() as connection:
            if (await connection.exec_driver_sql(query)).scalar_one() >= sessions:
                return
        await asyncio.sleep(0.01)
    raise AssertionError("nothing waits")


async def test_messages_without_a_key_ask_nothing_more(
    database: Database, ayu: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(archived_keys, "among", fail)
    entry = Entry(user_id=ayu.id, role="assistant", created_at=AT, usage=Usage(input_tokens=1, output_tokens=2))

    async def work(session: AsyncSession) -> object:
        return await token_usage.record(session, entry, UTC)

    assert await database.transaction(work) is not None
