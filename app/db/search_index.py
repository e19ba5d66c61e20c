"""Build PostgreSQL's index for searches, and clear that of SQLite."""

from collections.abc import Callable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.db import failures
from app.db.database import Database

IS_VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('ix_messages_content_trigrams')")
"""Query whether the index is complete; no row, if there is no index."""

SMALL = 10_000
"""The most messages whose index is built before the server serves: a build takes some seconds."""

_COUNT = text("SELECT count(*) FROM (SELECT 1 FROM messages LIMIT :most + 1) AS few")
# The extension may be in any schema.
_OPERATORS = text(
    "SELECT quote_ident(nspname) || '.gin_trgm_ops' FROM pg_opclass c JOIN pg_namespace n ON n.oid = c.opcnamespace"
    " WHERE opcname = 'gin_trgm_ops'"
)
# Folds ASCII only, as searches do. The trigrams of other letters need the collation of the database.
_CREATE = """
    CREATE INDEX CONCURRENTLY ix_messages_content_trigrams
    ON messages USING gin ((lower(content COLLATE "C")) COLLATE "default" {operators})
"""


async def is_complete(database: Database) -> bool:
    """Return whether searches can use the index."""
    async with database.engine.connect() as connection:
        return bool(await connection.scalar(IS_VALID))


async def build(database: Database, say: Callable[[str], None], most: int | None = None) -> None:
    """Build the index without blocking writers; do nothing if it is complete.

    Without the index, searches read all messages of a user. The caller holds the lock `migrations.alone`, since a
    concurrent build looks like an interrupted one.

    Args:
        database: PostgreSQL, with the newest schema.
        say: receives a line for the operator: why there is no index, or that a build begins.
        most: build only if there are at most this many messages.
    """
    try:
        async with database.engine.connect() as plain:
            connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
            await _build(connection, say, most)
    except failures.FAILURES as error:
        say(f"searches read all messages of a user: their index cannot be built: {failures.describe(error)}")


async def _build(connection: AsyncConnection, say: Callable[[str], None], most: int | None) -> None:
    is_valid = await connection.scalar(IS_VALID)
    if is_valid:
        return
    if most is not None and (await connection.scalar(_COUNT, {"most": most}) or 0) > most:
        say("searches read all messages of a user until python migrate_token_data.py has built their index")
        return
    operators = await _operators(connection)
    if most is None:
        say("building the index for searches; servers may continue, and it can be interrupted")
    if is_valid is False:  # left behind by a build that was interrupted
        await connection.execute(text("DROP INDEX CONCURRENTLY IF EXISTS ix_messages_content_trigrams"))
    await connection.execute(text(_CREATE.format(operators=operators)))


async def _operators(connection: AsyncConnection) -> str:
    found = await connection.scalar(_OPERATORS)
    if found is None:
        await connection.execute(text("CREATE EXTENSION IF NOT EXISTS pg_trgm"))
        found = await connection.scalar(_OPERATORS)
    return str(found)


async def clear(session: AsyncSession) -> None:
    """Empty SQLite's index, which the server then fills again."""
    if await session.scalar(
        text("UPDATE foundation_settings SET value = '0' WHERE name = 'trigrams_up_to' RETURNING 1")
    ):
        await session.execute(text("INSERT INTO message_trigrams (message_trigrams) VALUES ('delete-all')"))
