"""Read a database's revision, and the newest one that this code knows.

Alembic, which applies the revisions, is imported only by a process that applies some: it takes 11 MiB.
"""

import functools
import re

from sqlalchemy import Connection, String, column, inspect, select, table

from app import BASE_DIR
from app.db.database import Database
from app.db.engines import READ_ONLY
from app.errors import ConfigurationError

SCRIPTS = BASE_DIR / "alembic"
_STORED = table("alembic_version", column("version_num", String))
_NAMES = re.compile(r'^(down_)?revision = ["\'](\w+)["\']$', re.MULTILINE)
_COLUMNS = {
    "users": {"id", "username", "email", "hashed_password"},
    "conversations": {"id", "user_id", "title"},
    "messages": {"id", "conversation_id", "role", "content"},
}
"""Columns that these tables have in every database, also of the earlier backend."""


@functools.cache
def _known() -> list[tuple[str, str]]:
    texts = [path.read_text("utf-8") for path in (SCRIPTS / "versions").glob("*.py")]
    return [name for text in texts for name in _NAMES.findall(text)]


@functools.cache
def head() -> str:
    """Return the newest revision, which no other one revises.

    Raises:
        RuntimeError: there is none, or more than one.
    """
    revised = {name for down, name in _known() if down}
    heads = [name for down, name in _known() if not down and name not in revised]
    if len(heads) != 1:
        raise RuntimeError(f"{SCRIPTS} has {len(heads)} newest revisions")
    return heads[0]


def revision_of(connection: Connection) -> str | None:
    """Return the revision of a database; None if it was never migrated."""
    if not inspect(connection).has_table(_STORED.name):
        return None
    return connection.scalar(select(_STORED.c.version_num))


def refuse_outdated(connection: Connection) -> None:
    """Refuse an outdated schema; accept that of the earlier backend.

    Raises:
        ConfigurationError: the schema is not the newest, or the tables are another product's.
    """
    revision = revision_of(connection)
    if revision is None:
        _refuse_foreign(connection)
        return
    refuse_newer(revision)
    if revision != head():
        raise ConfigurationError("the schema is not the newest: start the server, or run the script without this flag")


def refuse_newer(revision: str | None) -> None:
    """Refuse a schema that this code does not know.

    Raises:
        ConfigurationError: the revision of the database is unknown.
    """
    if revision is not None and revision not in {name for _, name in _known()}:
        raise ConfigurationError(
            f"the database is of a newer version (its schema is {revision}): install that version, or restore a backup"
        )


def _refuse_foreign(connection: Connection) -> None:
    inspector = inspect(connection)
    for table_name in _COLUMNS.keys() & set(inspector.get_table_names()):
        missing = _COLUMNS[table_name] - {column["name"] for column in inspector.get_columns(table_name)}
        if missing:
            names = ", ".join(sorted(missing))
            raise ConfigurationError(
                f"the table {table_name} has no column {names}: it is not of a foundation-be database"
            )


async def is_current(database: Database) -> bool:
    """Return whether the schema is the newest; raise the driver's errors."""
    async with database.engine.connect() as connection:
        connection = await connection.execution_options(**{READ_ONLY: True})
        return await connection.run_sync(revision_of) == head()
