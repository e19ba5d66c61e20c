"""Index the trigrams of messages, for searches.

Revision ID: 0015
Revises: 0014

PostgreSQL builds an index of pg_trgm. On SQLite the server fills a table of FTS5 later, in batches. Triggers keep what
the table already holds, up to the message `trigrams_up_to` of `foundation_settings`, equal to the messages. The setting
`trigrams_to_erase` marks content that was deleted from the table, but which FTS5 still has to overwrite. Without these
extensions of the databases, searches read the messages.
"""

import logging

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

logger = logging.getLogger("alembic.trigrams")

INDEX = "ix_messages_content_trigrams"
TABLE = "message_trigrams"
FIRST_SQLITE = (3, 34)

IS_INDEXED = "(SELECT CAST(value AS INTEGER) FROM foundation_settings WHERE name = 'trigrams_up_to')"
FORGET = f"""
    INSERT INTO {TABLE} ({TABLE}, rowid, content) SELECT 'delete', old.id, old.content WHERE old.content IS NOT NULL;
    INSERT INTO foundation_settings (name, value) SELECT 'trigrams_to_erase', 'yes'
        WHERE NOT EXISTS (SELECT 1 FROM foundation_settings WHERE name = 'trigrams_to_erase');
"""
LEARN = f"INSERT INTO {TABLE} (rowid, content) SELECT new.id, new.content WHERE new.content IS NOT NULL;"
TRIGGERS = {
    "insert": f"AFTER INSERT ON messages WHEN new.id <= {IS_INDEXED} BEGIN {LEARN} END",
    "update": f"AFTER UPDATE OF content ON messages WHEN old.content IS NOT new.content AND old.id <= {IS_INDEXED}"
    f" BEGIN {FORGET} {LEARN} END",
    "delete": f"AFTER DELETE ON messages WHEN old.id <= {IS_INDEXED} BEGIN {FORGET} END",
}


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        with op.get_context().autocommit_block():
            index_on_postgresql()
    else:
        prepare_sqlite()


def prepare_sqlite() -> None:
    bind = op.get_bind()
    version = tuple(int(part) for part in str(bind.scalar(sa.text("SELECT sqlite_version()"))).split("."))
    has_fts5 = bind.scalar(sa.text("SELECT count(*) FROM pragma_module_list WHERE name = 'fts5'"))
    if not has_fts5 or version < FIRST_SQLITE:
        logger.warning("searches will read all messages: this SQLite has no FTS5 with trigrams")
        return
    options = "content = 'messages', content_rowid = 'id', columnsize = 0, detail = none, tokenize = 'trigram'"
    op.execute(f"CREATE VIRTUAL TABLE {TABLE} USING fts5(content, {options})")
    for name, definition in TRIGGERS.items():
        op.execute(f"CREATE TRIGGER {TABLE}_{name} {definition}")
    op.execute("INSERT INTO foundation_settings (name, value) VALUES ('trigrams_up_to', '0')")


def index_on_postgresql() -> None:
    operators = trigram_operators()
    if operators is None:
        logger.warning("searches will read all messages of a user: the extension pg_trgm cannot be created")
        return
    invalid = sa.text("SELECT 1 FROM pg_index WHERE NOT indisvalid AND indexrelid = to_regclass(:name)")
    # An interrupted concurrent build leaves an invalid index behind, which must be dropped and rebuilt.
    if op.get_bind().scalar(invalid, {"name": INDEX}):
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {INDEX}")
    op.execute(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {INDEX} ON messages USING gin (content {operators})")


def trigram_operators() -> str | None:
    """Return pg_trgm's operator class, qualified; None if it cannot be created."""
    bind = op.get_bind()
    where = sa.text(
        "SELECT quote_ident(nspname) || '.gin_trgm_ops' FROM pg_opclass c JOIN pg_namespace n ON n.oid = c.opcnamespace"
        " WHERE opcname = 'gin_trgm_ops'"
    )
    found = bind.scalar(where)
    if found is None and bind.scalar(sa.text("SELECT 1 FROM pg_available_extensions WHERE name = 'pg_trgm'")):
        try:
            bind.execute(sa.text("CREATE EXTENSION IF NOT EXISTS pg_trgm"))
        except sa.exc.ProgrammingError as error:
            logger.warning("pg_trgm: %s", error.orig)
        found = bind.scalar(where)
    return found


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        with op.get_context().autocommit_block():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {INDEX}")
        return
    for name in TRIGGERS:
        op.execute(f"DROP TRIGGER IF EXISTS {TABLE}_{name}")
    op.execute(f"DROP TABLE IF EXISTS {TABLE}")
    op.execute("DELETE FROM foundation_settings WHERE name IN ('trigrams_up_to', 'trigrams_to_erase')")
