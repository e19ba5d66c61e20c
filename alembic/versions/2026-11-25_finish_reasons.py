"""Store the finish reason of each answer, and further usage counts.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '3s'")
    present = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("messages")}
    for column in (sa.Column("finish_reason", sa.String()), sa.Column("usage_details", sa.Text())):
        if column.name not in present:  # an earlier backend may have created the column
            op.add_column("messages", column)


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '3s'")
    op.drop_column("messages", "usage_details")
    op.drop_column("messages", "finish_reason")
