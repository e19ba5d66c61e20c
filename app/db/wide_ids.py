"""Widen the ids of messages on PostgreSQL while servers write.

A trigger copies each id to a second column, batches fill old rows, and a short transaction swaps the columns. Each
step finds in the catalogue what is done. So a run can be killed at any point and repeated.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.console import Listener, Progress
from app.db import migrations, wide_id_catalogue
from app.db.database import Database
from app.db.wide_id_catalogue import Plan, Table

FIRST_PAGES, MOST_PAGES = 8, 1024
"""The number of pages of the first batch, and the maximum."""
# Seconds that a batch takes. The pause after it is as long, so that writers have half of the disk and a processor.
BATCH_SECONDS = 0.05
# Writers queue behind a waiting ACCESS EXCLUSIVE lock.
_LOCK_TIMEOUT = "100ms"

_COUNT = text("SELECT count(*) FROM messages")
_IS_PREPARED = text("SELECT 1 FROM pg_constraint WHERE conrelid = to_regclass(:table) AND conname = :name")
_IS_VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
_PAGES = text("SELECT pg_relation_size(to_regclass(:table)) / CAST(current_setting('block_size') AS bigint)")
_FIRST_PAGE = "SELECT (CAST(CAST(ctid AS text) AS point))[0] FROM {table} WHERE {unfilled} LIMIT 1"
# Locked rows are skipped, so that nothing waits and no deadlock arises. The trigger or the next pass fills these rows.
_FILL = """
    UPDATE {table} SET {assignments} WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM {table}
        WHERE ctid >= CAST('(' || CAST(:first AS bigint) || ',0)' AS tid)
            AND ctid < CAST('(' || CAST(:last AS bigint) || ',0)' AS tid) AND ({unfilled})
        FOR NO KEY UPDATE SKIP LOCKED))
"""


async def widen(database: Database, listener: Listener, say: Callable[[str], None]) -> list[str]:
    """Widen every 32-bit column with ids of messages.

    Args:
        database: at the newest schema. Its patience is how long a step waits for a lock.
        listener: receives the progress; an exception ends the run.
        say: receives a line for each long step.

    Returns:
        The widened columns, such as `messages.id`; none if all are wide.

    Raises:
        ConfigurationError: an object that the product does not know depends on the ids; nothing is changed.
    """
    if database.engine.dialect.name != "postgresql":
        return []
    async with migrations.alone(database):
        plan = await database.read(wide_id_catalogue.find)
        if plan.tables:
            await _copy(database, plan, listener)
            await _index(database, plan, say)
            await database.transaction(partial(_swap, plan=plan), repeatable=True)
        for key in await database.read(wide_id_catalogue.unchecked_keys):
            say(f"checking {key.name}")
            await _execute(database, f"ALTER TABLE {key.table_name} VALIDATE CONSTRAINT {key.name}")
    return [f"{table.name}.{column}" for table in plan.tables for column in table.columns]


async def _copy(database: Database, plan: Plan, listener: Listener) -> None:
    """Copy the ids; prove that each copy equals its id."""
    for table in plan.tables:
        await database.transaction(partial(_prepare, table=table), repeatable=True)
    total = await database.read(partial(_number, query=_COUNT)) or 0
    for table in sorted(plan.tables, key=lambda table: table.name == "messages"):
        await _fill(database, table, total, listener)
    for table in plan.tables:
        await _execute(database, f"ALTER TABLE {table.name} VALIDATE CONSTRAINT {table.check}")
        await _execute(database, f"ANALYZE {table.name} ({', '.join(table.wide)})")


async def _execute(database: Database, statement: str) -> None:
    async def work(session: AsyncSession) -> None:
        await session.execute(text(statement))

    await database.transaction(work, repeatable=True)


async def _prepare(session: AsyncSession, table: Table) -> None:
    """Add the columns, the trigger and the constraint."""
    if await session.scalar(_IS_PREPARED, {"table": table.name, "name": table.check}):
        return
    await _lock(session, [table.name])
    copies = " ".join(f"NEW.{name}_wide := NEW.{name};" for name in table.columns)
    for statement in (
        f"ALTER TABLE {table.name} {', '.join(f'ADD COLUMN {name} bigint' for name in table.wide)}",
        f"CREATE FUNCTION {table.trigger}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {copies} RETURN NEW; END$$",
        f"CREATE TRIGGER {table.trigger} BEFORE INSERT OR UPDATE ON {table.name}"
        f" FOR EACH ROW EXECUTE FUNCTION {table.trigger}()",
        f"ALTER TABLE {table.name} ENABLE ALWAYS TRIGGER {table.trigger}",  # also for rows from a replica
        f"ALTER TABLE {table.name} ADD CONSTRAINT {table.check} CHECK ({_is_filled(table)}) NOT VALID",
    ):
        await session.execute(text(statement))


async def _lock(session: AsyncSession, tables: list[str]) -> None:
    """Lock tables exclusively; wait for that only a moment.

    The weaker lock blocks no writer. Its wait interrupts an autovacuum, which a short one does not.
    """
    for mode in ("SHARE UPDATE EXCLUSIVE", "ACCESS EXCLUSIVE"):
        for name in tables:
            await session.execute(text(f"LOCK TABLE {name} IN {mode} MODE"))
        await session.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))


def _is_filled(table: Table) -> str:
    # PostgreSQL concludes NOT NULL from the first form, and then need not read the table.
    return " AND ".join(
        f"{name}_wide IS NOT NULL AND {name}_wide = {name}"
        if is_required
        else f"{name}_wide IS NOT DISTINCT FROM {name}"
        for name, is_required in table.columns.items()
    )


async def _fill(database: Database, table: Table, total: int, listener: Listener) -> None:
    """Fill old rows in passes over the pages, until none is left."""
    unfilled = " OR ".join(f"{name}_wide IS DISTINCT FROM {name}" for name in table.columns)
    assignments = ", ".join(f"{name}_wide = {name}" for name in table.columns)
    first_page = text(_FIRST_PAGE.format(table=table.name, unfilled=unfilled))
    fill = text(_FILL.format(table=table.name, unfilled=unfilled, assignments=assignments))
    count = FIRST_PAGES
    while (page := await database.read(partial(_number, query=first_page))) is not None:
        pages = await database.read(partial(_number, query=_PAGES, table=table.name)) or 0
        while page < pages:
            began = time.monotonic()
            await database.transaction(partial(_fill_pages, fill=fill, first=page, last=page + count), repeatable=True)
            taken = time.monotonic() - began
            page += count
            count = min(max(int(count * min(max(BATCH_SECONDS / taken, 0.5), 1.5)), 2), MOST_PAGES)
            done = total * min(page, pages) // pages if table.name == "messages" else 0
            listener(Progress("widening ids", done, total))
            await asyncio.sleep(taken)


async def _number(session: AsyncSession, query: TextClause, **values: str) -> int | None:
    found = await session.scalar(query, values)
    return None if found is None else int(found)


async def _fill_pages(session: AsyncSession, fill: TextClause, first: int, last: int) -> None:
    await session.execute(fill, {"first": first, "last": last})


async def _index(database: Database, plan: Plan, say: Callable[[str], None]) -> None:
    for index in plan.indexes:
        say(f"building an index for {index.name}; servers may continue")
        unique = "UNIQUE " if index.is_unique else ""
        where = f" WHERE {index.predicate}" if index.predicate else ""
        create = (
            f"CREATE {unique}INDEX CONCURRENTLY {index.wide_name}"
            f" ON {index.table_name} ({index.column_name}_wide){where}"
        )
        await database.retrying.copy()(_build, database, index.wide_name, create)


async def _build(database: Database, name: str, create: str) -> None:
    """Build an index; drop what a killed run left.

    A build also waits for all older snapshots. So none that lacks the copies is left at the swap.
    """
    while not await database.read(partial(_number, query=_IS_VALID, name=name)):
        async with database.engine.connect() as connection:
            # Without SQLAlchemy, one message: behind a pooler, a prepared statement could meet another session.
            driver = (await connection.get_raw_connection()).driver_connection
            await driver.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")  # type: ignore[union-attr]
            await driver.execute(create)  # type: ignore[union-attr]


async def _swap(session: AsyncSession, plan: Plan) -> None:
    """Replace the 32-bit columns by their copies, in milliseconds."""
    first = plan.tables[0]
    if not await session.scalar(_IS_PREPARED, {"table": first.name, "name": first.check}):
        return  # committed already: the connection was lost meanwhile
    await _lock(session, plan.locked)
    for statement in _swap_statements(plan):
        await session.execute(text(statement))


def _swap_statements(plan: Plan) -> list[str]:
    statements = [f"ALTER TABLE {key.table_name} DROP CONSTRAINT {key.name}" for key in plan.keys]
    for table in plan.tables:
        statements += _table_statements(table, plan.sequence)
    for required in plan.required:
        statements.append(
            f"ALTER TABLE {required.table_name} RENAME CONSTRAINT {required.wide_name} TO {required.name}"
        )
    for index in plan.indexes:
        if index.is_primary:
            statements.append(
                f"ALTER TABLE {index.table_name} ADD CONSTRAINT {index.name} PRIMARY KEY USING INDEX {index.wide_name}"
            )
        else:
            statements.append(f"ALTER INDEX {index.wide_name} RENAME TO {index.name}")
    return statements + [
        f"ALTER TABLE {key.table_name} ADD CONSTRAINT {key.name} {key.definition} NOT VALID" for key in plan.keys
    ]


def _table_statements(table: Table, sequence: str | None) -> list[str]:
    name = table.name
    required = [f"ALTER {column}_wide SET NOT NULL" for column, is_required in table.columns.items() if is_required]
    statements = [f"DROP TRIGGER {table.trigger} ON {name}", f"DROP FUNCTION {table.trigger}()"]
    statements += [f"ALTER TABLE {name} {action}" for action in required]
    statements.append(f"ALTER TABLE {name} DROP CONSTRAINT {table.check}")
    if name == "messages" and "id" in table.columns:
        statements += [
            f"ALTER SEQUENCE {sequence} AS bigint",
            f"ALTER SEQUENCE {sequence} OWNED BY messages.id_wide",
            f"ALTER TABLE messages ALTER id_wide SET DEFAULT nextval('{sequence}')",
        ]
    for column in table.columns:
        statements += [
            f"ALTER TABLE {name} DROP COLUMN {column}",
            f"ALTER TABLE {name} RENAME {column}_wide TO {column}",
        ]
    return statements
