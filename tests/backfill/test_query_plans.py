"""How SQLite goes about the script's statements in a large database: what it looks through, and by which index."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from app.db import migrations
from app.db.database import Database
from services import backfill
from services.backfill import Policy, Scope
from tests.support import old_databases
from tests.support.backfilling import UTC_ZONE, silent

LARGE = {"messages": 10_000_000, "conversations": 500_000, "users": 1_000}
THROUGH_A_TABLE = re.compile(r"SCAN (messages|m|conversations|c|users|u)\b(?!.* COVERING INDEX ix_messages)")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """An old database of a few rows at the newest schema, of which SQLite believes that it is large."""
    old = old_databases.build(f"sqlite:///{tmp_path / 'old.db'}", 3, rows=100)
    await migrations.upgrade(old.url)
    opened = Database.open(old.url)
    statements = [
        "ANALYZE",
        "DELETE FROM sqlite_stat1 WHERE tbl LIKE '%usage%'",
        *(f"UPDATE sqlite_stat1 SET stat = '{rows} 1' WHERE tbl = '{table}'" for table, rows in LARGE.items()),
    ]
    async with opened.sessions.begin() as session:
        for statement in statements:
            await session.execute(text(statement))
    await opened.close()
    opened = Database.open(old.url)
    yield opened
    await opened.close()


async def plans_of_a_run(database: Database) -> dict[str, list[str]]:
    """Of each statement of two runs and a comparison, the steps."""
    plans: dict[str, list[str]] = {}

    def explain(connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")) and statement not in plans:
            plans[statement] = []
            one = parameters[0] if isinstance(parameters, list) else parameters
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", one)
            plans[statement] = [row[3] for row in rows]

    event.listen(database.engine.sync_engine, "before_cursor_execute", explain)
    for work in (backfill.run, backfill.run, backfill.verify):
        await work(database, Scope(), 10, UTC_ZONE, Policy(), silent)
    return plans


async def test_no_statement_of_the_script_looks_through_a_whole_table(database: Database) -> None:
    plans = await plans_of_a_run(database)
    for statement, steps in plans.items():
        assert not [step for step in steps if THROUGH_A_TABLE.match(step)], (statement, steps)
    [adopting] = [steps for statement, steps in plans.items() if "foundation_usage_date" in statement]
    assert re.match(r"SEARCH m USING .*id>\? AND (row)?id<\?\)", adopting[1]), "a range of messages first"
    [steps] = [steps for statement, steps in plans.items() if statement.startswith("WITH days")]
    [sums] = [step for step in steps if "ix_messages_user_id_usage_date" in step]
    assert sums.endswith("(user_id>? AND user_id<?)"), steps
