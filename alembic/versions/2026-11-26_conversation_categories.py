"""Add the model category of a conversation.

Revision ID: 0013
Revises: 0012

Later versions of the earlier backend had this column. An existing column stays unchanged, with its foreign key. A
downgrade keeps the column.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '3s'")
    columns = sa.inspect(op.get_bind()).get_columns("conversations")
    if not any(column["name"] == "category_id" for column in columns):
        op.add_column("conversations", sa.Column("category_id", sa.BigInteger()))


def downgrade() -> None:
    """Keep the column."""
