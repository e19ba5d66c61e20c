"""Index the trigrams of messages on SQLite, for searches.

Revision ID: 0015
Revises: 0014

The server fills the table of FTS5 later, in batches. Triggers keep what the table already holds, up to the message
`trigrams_up_to` of `foundation_settings`, equal to the messages. The setting `trigrams_to_erase` marks content that was
deleted from the table, but which FTS5 still has to overwrite. Without FTS5, searches read the messages. PostgreSQL's
index is built outside of the revisions, because that may take hours.
"""

import logging

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

logger = logging.getLogger("alembic.trigrams")

TABLE = "message_trigrams"
OPTIONS = "content = 'messages', content_rowid = 'id', columnsize = 0, detail = none, tokenize = 'trigram'"
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
        return
    try:
        op.execute(f"CREATE VIRTUAL TABLE {TABLE} USING fts5(content, {OPTIONS})")
    except sa.exc.OperationalError as error:  # no FTS5, or older than 3.34
        logger.warning("searches will read all messages of a user: SQLite has no index of trigrams: %s", error.orig)
        return
    for name, definition in TRIGGERS.items():
        op.execute(f"CREATE TRIGGER {TABLE}_{name} {definition}")
    op.execute("INSERT INTO foundation_settings (name, value) VALUES ('trigrams_up_to', '0')")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        with op.get_context().autocommit_block():
            op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_messages_content_trigrams")
        return
    for name in TRIGGERS:
        op.execute(f"DROP TRIGGER IF EXISTS {TABLE}_{name}")
    op.execute(f"DROP TABLE IF EXISTS {TABLE}")
    op.execute("DELETE FROM foundation_settings WHERE name IN ('trigrams_up_to', 'trigrams_to_erase')")
