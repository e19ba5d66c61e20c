"""Index the daily rollup by day, for reports on all users.

Revision ID: 0016
Revises: 0015
"""

from contextlib import AbstractContextManager, nullcontext

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

TABLE, INDEX = "user_daily_token_usage", "ix_user_daily_token_usage_usage_date"


def upgrade() -> None:
    with outside_of_transaction():
        if is_invalid():  # left behind by a concurrent build that was interrupted
            op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS "{INDEX}"')
        op.create_index(INDEX, TABLE, ["usage_date"], if_not_exists=True, postgresql_concurrently=True)


def outside_of_transaction() -> AbstractContextManager[None]:
    context = op.get_context()
    return context.autocommit_block() if context.dialect.name == "postgresql" else nullcontext()


def is_invalid() -> bool:
    bind = op.get_bind()
    if bind.dialect.name != "postgresql":
        return False
    query = sa.text(
        "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE NOT i.indisvalid AND c.relname = :name AND pg_table_is_visible(c.oid)"
    )
    return bool(bind.scalar(query, {"name": INDEX}))


def downgrade() -> None:
    with outside_of_transaction():
        op.drop_index(INDEX, TABLE, if_exists=True, postgresql_concurrently=True)
