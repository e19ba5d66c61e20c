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


@functools.cache
def head() -> str:
    """Return the newest revision, which no other one revises.

    Raises:
        RuntimeError: there is none, or more than one.
    """
    texts = [path.read_text("utf-8") for path in (SCRIPTS / "versions").glob("*.py")]
    found: list[tuple[str, str]] = [name for text in texts for name in _NAMES.findall(text)]
    revised = {name for down, name in found if down}
    heads = [name for down, name in found if not down and name not in revised]
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
        ConfigurationError: the schema is not the newest.
    """
    if revision_of(connection) not in (None, head()):
        raise ConfigurationError("the schema is not the newest: start the server, or run the script without this flag")


async def is_current(database: Database) -> bool:
    """Return whether the schema is the newest; raise the driver's errors."""
    async with database.engine.connect() as connection:
        connection = await connection.execution_options(**{READ_ONLY: True})
        return await connection.run_sync(revision_of) == head()
