"""Add the indexes, concurrently with writes on PostgreSQL.

Revision ID: 0002
Revises: 0001
"""

from contextlib import AbstractContextManager, nullcontext

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

PLAIN = {
    "ix_conversations_user_id": ("conversations", ["user_id"]),
    "ix_messages_conversation_id": ("messages", ["conversation_id"]),
}
KEY_INDEX = "uq_messages_idempotency_key"
PENDING_INDEX = "ix_messages_pending"
IS_PENDING = sa.text("status = 'pending'")
KEY_IS_SET = sa.text("idempotency_key IS NOT NULL")


def upgrade() -> None:
    # An interrupted concurrent build leaves an invalid index behind, which must be dropped and rebuilt.
    with outside_of_transaction():
        for name in invalid_indexes():
            op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS "{name}"')
        for name, (table, columns) in PLAIN.items():
            op.create_index(name, table, columns, if_not_exists=True, postgresql_concurrently=True)
        op.create_index(
            KEY_INDEX,
            "messages",
            ["user_id", "idempotency_key"],
            unique=True,
            if_not_exists=True,
            postgresql_concurrently=True,
            postgresql_where=KEY_IS_SET,
            sqlite_where=KEY_IS_SET,
        )
        op.create_index(
            PENDING_INDEX,
            "messages",
            ["turn"],
            if_not_exists=True,
            postgresql_concurrently=True,
            postgresql_where=IS_PENDING,
            sqlite_where=IS_PENDING,
        )
        if op.get_bind().dialect.name == "postgresql":
            op.execute("ALTER TABLE messages VALIDATE CONSTRAINT ck_messages_counted")


def outside_of_transaction() -> AbstractContextManager[None]:
    context = op.get_context()
    return context.autocommit_block() if context.dialect.name == "postgresql" else nullcontext()


def invalid_indexes() -> list[str]:
    bind = op.get_bind()
    if bind.dialect.name != "postgresql":
        return []
    query = sa.text(
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE NOT i.indisvalid AND c.relname = ANY (:names) AND pg_table_is_visible(c.oid)"
    )
    return list(bind.scalars(query, {"names": [*PLAIN, KEY_INDEX, PENDING_INDEX]}))


def downgrade() -> None:
    for name in (KEY_INDEX, PENDING_INDEX):
        op.drop_index(name, "messages")
    op.drop_index("ix_messages_usage", "messages", if_exists=True)  # which this revision built once, and 0005 replaces
    for name, (table, _columns) in PLAIN.items():
        op.drop_index(name, table, if_exists=True)
