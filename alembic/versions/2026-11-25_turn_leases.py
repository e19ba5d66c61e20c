"""Add the table of server processes.

Revision ID: 0007
Revises: 0006

Each process uses the table to find which other processes still answer their turns.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '3s'")
    op.create_table(
        "server_processes",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("heartbeats", sa.BigInteger(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("server_processes")
