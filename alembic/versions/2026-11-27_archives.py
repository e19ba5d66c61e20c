"""Add the tables of archived messages, and make references plain numbers.

Revision ID: 0017
Revises: 0016

In databases of the earlier backend, `parent_message_id` was a foreign key. A message may now be archived before those
that name it. SQLite cannot drop the key without copying the table; there, the script does not enforce it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

instant = sa.DateTime(timezone=True).with_variant(sa.String(), "sqlite")
usd = sa.Numeric(20, 10).with_variant(sa.BigInteger(), "sqlite")


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '3s'")
        for key in sa.inspect(op.get_bind()).get_foreign_keys("messages"):
            if key["constrained_columns"] == ["parent_message_id"] and key["name"]:
                op.drop_constraint(key["name"], "messages", type_="foreignkey")
    op.create_table(
        "archives",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("messages", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("restored", sa.BigInteger(), nullable=False),
        sa.Column("created_at", instant, nullable=False),
    )
    op.create_table(
        "archived_keys",
        sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=False),
        sa.Column("request_hash", sa.String()),
        sa.Column("role", sa.String()),
        sa.Column("model", sa.String()),
        *(sa.Column(f"{name}_tokens", sa.BigInteger()) for name in ("input", "output", "cached_input")),
        sa.Column("cost", usd),
        sa.Column("created_at", instant),
        sa.PrimaryKeyConstraint("user_id", "idempotency_key"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop the tables, without which no archive can be imported."""
    op.drop_table("archived_keys")
    op.drop_table("archives")
