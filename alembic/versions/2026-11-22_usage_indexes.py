"""Index the days of users, and separately the rows not adopted yet.

Revision ID: 0005
Revises: 0004

The first index excludes messages without an owner. An old row enters that index when the script adopts the row, and is
not moved within the index. The second index finds the remaining rows without a scan of the adopted ones.
"""

from contextlib import AbstractContextManager, nullcontext

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_messages_user_id_usage_date": (["user_id", "usage_date"], sa.text("user_id IS NOT NULL")),
    "ix_messages_not_adopted": (
        ["id"],
        sa.text("user_id IS NULL OR usage_date IS NULL AND role = 'assistant' AND input_tokens IS NOT NULL"),
    ),
}
FORMER = "ix_messages_usage"


def upgrade() -> None:
    # An interrupted concurrent build leaves an invalid index behind, which must be dropped and rebuilt.
    with outside_of_transaction():
        for name in invalid_indexes():
            op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS "{name}"')
        for name, (columns, condition) in INDEXES.items():
            op.create_index(
                name,
                "messages",
                columns,
                if_not_exists=True,
                postgresql_concurrently=True,
                postgresql_where=condition,
                sqlite_where=condition,
            )
        op.drop_index(FORMER, "messages", if_exists=True, postgresql_concurrently=True)


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
    return list(bind.scalars(query, {"names": list(INDEXES)}))


def downgrade() -> None:
    columns = ["user_id", "usage_date", "input_tokens", "output_tokens", "cost"]
    with outside_of_transaction():
        op.create_index(FORMER, "messages", columns, if_not_exists=True, postgresql_concurrently=True)
        for name in INDEXES:
            op.drop_index(name, "messages", if_exists=True, postgresql_concurrently=True)
