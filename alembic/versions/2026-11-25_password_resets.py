"""Add one-time tokens for password resets, stored as hashes.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

instant = sa.DateTime(timezone=True).with_variant(sa.String(), "sqlite")


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '3s'")
    op.create_table(
        "password_resets",
        sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("token_hash", sa.String(), nullable=False),
        sa.Column("expires_at", instant, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("password_resets")
