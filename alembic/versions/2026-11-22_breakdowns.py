"""Add the rollups by day, and by day and conversation.

Revision ID: 0004
Revises: 0003

The rollups serve the breakdowns. The script fills them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

usd = sa.Numeric(20, 10).with_variant(sa.BigInteger(), "sqlite")
instant = sa.DateTime(timezone=True).with_variant(sa.String(), "sqlite")
FIGURES = ("input_tokens", "output_tokens", "message_count")


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '3s'")
    op.create_table(
        "user_daily_token_usage",
        *days(),
        *figures(),
        sa.Column("conversation_count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "usage_date"),
        sa.CheckConstraint(f"{all_natural(*FIGURES, 'total_cost', 'conversation_count')}", "ck_user_daily_token_usage"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "conversation_daily_token_usage",
        *days(),
        sa.Column("conversation_id", sa.String(), nullable=False),
        *figures(),
        sa.Column("last_message_at", instant),
        sa.PrimaryKeyConstraint("user_id", "usage_date", "conversation_id"),
        sa.CheckConstraint(f"{all_natural(*FIGURES, 'total_cost')}", "ck_conversation_daily_token_usage"),
        sqlite_with_rowid=False,
    )


def days() -> tuple[sa.Column[int], sa.Column[object]]:
    return (
        sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("usage_date", sa.Date(), nullable=False),
    )


def figures() -> list[sa.Column[int]]:
    tokens = [sa.Column(name, sa.BigInteger(), nullable=False) for name in FIGURES]
    return [*tokens[:2], sa.Column("total_cost", usd, nullable=False), *tokens[2:]]


def all_natural(*names: str) -> str:
    return " AND ".join(f"{name} >= 0" for name in names)


def downgrade() -> None:
    op.drop_table("conversation_daily_token_usage")
    op.drop_table("user_daily_token_usage")
