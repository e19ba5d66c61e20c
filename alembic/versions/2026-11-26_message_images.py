"""Add the images of messages.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

instant = sa.DateTime(timezone=True).with_variant(sa.String(), "sqlite")


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '3s'")
    if sa.inspect(op.get_bind()).has_table("message_images"):  # a downgrade keeps it
        return
    op.create_table(
        "message_images",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("content_type", sa.String(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", instant, nullable=False),
    )
    op.create_index("ix_message_images_user_id", "message_images", ["user_id"])


def downgrade() -> None:
    """Keep the images."""
