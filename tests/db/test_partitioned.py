"""Tables that are hash-partitioned by user: each statement of a request touches one partition of each table.

`PARTITIONED=1` runs other tests on such tables, too.
"""

import asyncio
import functools
import json
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import httpx
import pytest
from sqlalchemy import Engine, event

from app.db import ownership, single_reads
from app.db.database import Database
from services.backfill import deficits, key_ranges
from services.backfill.deficits import KeyRange
from services.backfill.key_ranges import Scope, Size
from services.usage import time_zone, token_usage
from services.usage.token_usage import Entry, Usage
from tests.support import accounts, all_requests, commands, invariants, old_databases, partitioned, raw_sql
from tests.support.accounts import Caller
from tests.support.shared_databases import execute

EXCEPTIONS = {
    r"FROM message_images\s+WHERE message_images.name = ": "an image is asked for by its unguessable name alone",
    r"FROM messages\s+WHERE messages.status = \$\d+::VARCHAR ORDER BY": "every process looks for turns of dead ones",
}
"""The statements that read all partitions, and why."""

UrlOf = Callable[[str], str]
TABLES = (
    *("conversations", "messages", "feedback", "message_images", "user_monthly_token_usage", "user_daily_token_usage"),
    *("usage_adjustments", "api_keys", "refresh_tokens", "revoked_tokens", "password_resets", "user_preferences"),
    *("user_model_categories", "archived_keys"),
)
Sent = dict[str, Sequence[Any]]


@pytest.fixture
def kind() -> str:
    return "postgresql"


@pytest.fixture
def database_url(postgresql: UrlOf, templates: dict[str, str]) -> Iterator[str]:
    name = f"partitioned_{uuid.uuid4().hex}"
    asyncio.run(execute(postgresql("postgres"), f"CREATE DATABASE {name} TEMPLATE {templates['postgresql']}"))
    if not partitioned.is_wanted():
        partitioned.convert(postgresql(name))
    yield postgresql(name)
    asyncio.run(execute(postgresql("postgres"), f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    """Every statement, with the values that it was last sent with."""
    found: Sent = {}

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, _many: bool) -> None:
        found[statement] = values[0] if isinstance(values, list) else values

    asks = single_reads._PostgreSQLReader.ask

    async def ask(self: Any, query: single_reads.Query, arguments: Sequence[Any]) -> Any:
        found[query.text] = arguments
        return await asks(self, query, arguments)

    monkeypatch.setattr(single_reads._PostgreSQLReader, "ask", ask)
    event.listen(Engine, "before_cursor_execute", note)
    yield found
    event.remove(Engine, "before_cursor_execute", note)


async def partitions_of(connection: asyncpg.Connection, statement: str, values: Sequence[Any]) -> dict[str, set[str]]:
    """The partitions in the plan of a statement, by table."""
    ((plan,),) = await connection.fetch(f"EXPLAIN (FORMAT JSON) {statement}", *values)
    found: dict[str, set[str]] = defaultdict(set)
    for name in re.findall(r'"Relation Name": "(\w+)"', json.dumps(json.loads(plan))):
        if partition := re.fullmatch(r"(\w+)_p\d+", name):
            found[partition[1]].add(name)
    return found


@pytest.mark.long
async def test_a_request_reads_one_partition_of_a_table(
    sent: Sent, client: httpx.AsyncClient, database: Database, service: Caller, database_url: str
) -> None:
    admin = await accounts.add(database, "admin", role="admin")
    for username in ("dewi", "eko"):
        user_id = await all_requests.drive(client, username, service, admin)
        await database.read(functools.partial(deficits.read, key_range=KeyRange(user_id, user_id)))
    statements = dict(sent)
    assert await invariants.check(database) == {}
    connection = await asyncpg.connect(database_url)
    await connection.execute("SET plan_cache_mode = force_custom_plan")
    wide: dict[str, dict[str, set[str]]] = {}
    read: set[str] = set()
    excepted: set[str] = set()
    for statement, values in statements.items():
        if not re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", statement):
            continue
        tables = await partitions_of(connection, statement, values)
        read |= tables.keys()
        if any(len(parts) > 1 for parts in tables.values()):
            reasons = [pattern for pattern in EXCEPTIONS if re.search(pattern, statement)]
            excepted |= set(reasons)
            if not reasons:
                wide[statement] = dict(tables)
    await connection.close()
    assert not wide, "\n".join(f"WIDE {statement} {tables}" for statement, tables in wide.items())
    assert excepted == set(EXCEPTIONS)
    assert {"messages", "conversations", "feedback", "message_images", "user_monthly_token_usage"} <= read


async def test_on_citus_each_range_is_of_one_user(
    database: Database, ayu: Caller, bela: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range of users would read several snapshots there, one of each node."""
    ranges = [each async for each in key_ranges.cover(database, Scope(), Size(1_000, 1_000))]
    assert len(ranges) == 1
    monkeypatch.setattr(ownership, "is_on_citus", lambda _dialect: True)
    ranges = [each async for each in key_ranges.cover(database, Scope(), Size(1_000, 1_000))]
    assert [(each.first_user, each.last_user) for each in ranges] == [(ayu.id, ayu.id), (bela.id, bela.id)]


async def test_on_citus_messages_are_redated_by_user(
    database: Database, ayu: Caller, bela: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "is_on_citus", lambda _dialect: True)
    at, zone = datetime(2024, 2, 29, 23, tzinfo=UTC), ZoneInfo("Asia/Jakarta")
    usage = Usage(input_tokens=5, output_tokens=7)
    entries = [Entry(user_id=caller.id, role="assistant", created_at=at, usage=usage) for caller in (ayu, bela)]
    await database.transaction(lambda session: token_usage.record_all(session, entries, UTC))
    batch = await database.transaction(lambda session: time_zone.redate_batch(session, 0, zone))
    assert batch is not None
    assert (batch.rows, batch.redated) == (2, 2)
    assert set(await invariants.check(database, zone)) == {(ayu.id, "2024-03"), (bela.id, "2024-03")}


REPAIRS = {
    "the earlier backend may still run": "--finish",
    "ids of messages have 32 bits": "--widen-ids",
    "messages without a user": (
        "DELETE FROM feedback USING messages WHERE message_id = messages.id AND messages.user_id IS NULL",
        "DELETE FROM messages WHERE user_id IS NULL",
    ),
    "conversations without a user": (
        "DELETE FROM conversation_contexts USING conversations c WHERE conversation_id = c.id AND c.user_id IS NULL",
        "DELETE FROM conversations WHERE user_id IS NULL",
    ),
    "other tables refer to these by id alone": (
        "ALTER TABLE conversation_contexts DROP CONSTRAINT conversation_contexts_conversation_id_fkey",
    ),
}
"""What keys.sql says of a database of the earlier backend, one after the other, and what mends it."""


@pytest.mark.long
def test_an_adopted_database_is_partitioned(empty_database_url: str) -> None:
    old = old_databases.build(empty_database_url, 3, rows=100)
    assert commands.migrate(old.url).code == 0
    for reason, repairs in REPAIRS.items():
        assert reason in partitioned.attempt("keys.sql", old.url)
        if isinstance(repairs, str):
            assert commands.migrate(old.url, repairs).code == 0
        else:
            raw_sql.run(old.url, *repairs)
    for _ in range(2):  # repeatable
        partitioned.run("keys.sql", old.url)
    before = {table: sorted(map(str, raw_sql.contents(old.url, table))) for table in TABLES}
    for _ in range(2):
        partitioned.run("partition.sql", old.url, "-v", f"partitions={partitioned.PARTITIONS}")
    assert {table: sorted(map(str, raw_sql.contents(old.url, table))) for table in TABLES} == before
    assert raw_sql.value(old.url, "SELECT count(*) FROM pg_class WHERE relkind = 'p'") == len(TABLES)
    raw_sql.run(old.url, "UPDATE user_monthly_token_usage SET message_count = message_count + 1")
    assert commands.migrate(old.url, "--verify").code == 1
    assert commands.migrate(old.url).code == 0
    assert commands.migrate(old.url, "--verify").code == 0
