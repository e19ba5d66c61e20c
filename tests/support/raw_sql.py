"""SQL on either kind of database through its bare driver: no ORM, no type of the product, no foreign keys enforced."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg

Row = tuple[Any, ...]

_SCHEMA = {
    "columns": "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
    " WHERE table_schema = 'public' ORDER BY 1, 2",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
    "constraints": "SELECT conrelid::regclass::text, conname, convalidated, pg_get_constraintdef(oid)"
    " FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2",
}
_CATALOGUE = """
    SELECT relname, c.oid, relfilenode, c.xmin::text, attname, a.xmin::text
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE relnamespace = 'public'::regnamespace ORDER BY 1, 5
"""


def path_of(url: str) -> str:
    """The path of a SQLite database."""
    return url.removeprefix("sqlite:///")


def run(url: str, *statements: str) -> list[Row]:
    """Runs statements, each committed by itself; answers with the rows of the last one."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(path_of(url), isolation_level=None)) as connection:
            return [connection.execute(statement).fetchall() for statement in statements][-1]
    return asyncio.run(_run(url, statements))


def value(url: str, statement: str) -> Any:
    """The only value of the only row."""
    ((found,),) = run(url, statement)
    return found


def insert(url: str, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Inserts rows just as they are, in one transaction; on PostgreSQL a sequence goes on after their ids."""
    into = f"INSERT INTO {table} ({', '.join(columns)}) VALUES"
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(path_of(url))) as connection, connection:
            connection.executemany(f"{into} ({', '.join('?' * len(columns))})", rows)
        return
    places = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
    asyncio.run(_insert(url, f"{into} ({places})", rows))
    if rows and isinstance(rows[0][0], int):
        run(url, f"SELECT setval(pg_get_serial_sequence('{table}', '{columns[0]}'), {max(row[0] for row in rows)})")


def schema(url: str) -> dict[str, list[Row]]:
    """Everything that the catalogue says of the tables."""
    if url.startswith("sqlite"):
        return {"tables": run(url, "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2")}
    return {name: run(url, statement) for name, statement in _SCHEMA.items()}


def contents(url: str, table: str, columns: Sequence[str] | None = None) -> list[Row]:
    """All rows of a table, in the order of its first column, each value exactly as it is stored."""
    names = list(columns or columns_of(url, table))
    shown = names if url.startswith("sqlite") else [f"{name}::text" for name in names]
    return run(url, f"SELECT {', '.join(shown)} FROM {table} ORDER BY {table}.{names[0]}")


def snapshot(url: str) -> dict[str, Any]:
    """Everything that is stored, catalogue included: equal before and after only where nothing was written."""
    if url.startswith("sqlite"):
        path = Path(path_of(url))
        files = {file.name: file.read_bytes() for file in path.parent.glob(f"{path.name}*") if file.stat().st_size}
        return {name: content for name, content in files.items() if not name.endswith("-shm")} | schema(url)
    tables = [name for (name,) in run(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")]
    versions = {
        table: run(url, f"SELECT ctid::text, xmin::text, t::text FROM {table} t ORDER BY 1") for table in tables
    }
    return versions | {"catalogue": run(url, _CATALOGUE)} | schema(url)


def columns_of(url: str, table: str) -> list[str]:
    """The names of a table's columns, in their order."""
    if url.startswith("sqlite"):
        return [row[1] for row in run(url, f"PRAGMA table_info({table})")]
    statement = "SELECT column_name FROM information_schema.columns WHERE table_schema = 'public'"
    return [row[0] for row in run(url, f"{statement} AND table_name = '{table}' ORDER BY ordinal_position")]


async def _run(url: str, statements: Sequence[str]) -> list[Row]:
    connection = await asyncpg.connect(url)
    try:
        return [[tuple(row) for row in await connection.fetch(statement)] for statement in statements][-1]
    finally:
        await connection.close()


async def _insert(url: str, statement: str, rows: Sequence[Row]) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.executemany(statement, rows)
    finally:
        await connection.close()
