"""Add token versions, refresh and revoked tokens, API keys, and attempts.

Revision ID: 0003
Revises: 0002

`users` gets two nullable columns. The table of attempts counts tries, to limit their rate. The index of the rollup
serves the sums of all users for one month.
"""

from contextlib import AbstractContextManager, nullcontext

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

MONTH_INDEX = "ix_user_monthly_token_usage_month"
USERNAME_KEY_INDEX = "uq_users_username_key"
TABLES = ("refresh_tokens", "revoked_tokens", "api_keys", "attempts")

instant = sa.DateTime(timezone=True).with_variant(sa.String(), "sqlite")


def upgrade() -> None:
    build_month_index()  # first: after an interruption, the index is rebuilt, and nothing else exists yet
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '3s'")
    op.add_column("users", sa.Column("token_version", sa.Integer()))
    op.add_column("users", sa.Column("username_key", sa.String()))
    op.create_index(USERNAME_KEY_INDEX, "users", ["username_key"], unique=True)
    create_refresh_tokens()
    op.create_table(
        "revoked_tokens",
        sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("jti", sa.String(), primary_key=True),
        sa.Column("expires_at", instant, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column("key_hash", sa.String(), nullable=False),
        sa.Column("created_at", instant, nullable=False),
        sa.Column("revoked_at", instant),
        sa.UniqueConstraint("user_id", "key_hash", name="uq_api_keys_key_hash"),
    )
    op.create_table(
        "attempts",
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("expires_at", instant, nullable=False),
    )
    op.create_index("ix_attempts_expires_at", "attempts", ["expires_at"])


def build_month_index() -> None:
    context = op.get_context()
    with outside_of_transaction():
        if context.dialect.name == "postgresql":
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {MONTH_INDEX}")
        op.create_index(
            MONTH_INDEX,
            "user_monthly_token_usage",
            ["year", "month"],
            if_not_exists=True,
            postgresql_concurrently=True,
        )


def outside_of_transaction() -> AbstractContextManager[None]:
    context = op.get_context()
    return context.autocommit_block() if context.dialect.name == "postgresql" else nullcontext()


def create_refresh_tokens() -> None:
    op.create_table(
        "refresh_tokens",
        sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("token_hash", sa.String(), primary_key=True),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("token_version", sa.Integer(), nullable=False),
        sa.Column("access_jti", sa.String(), nullable=False),
        sa.Column("access_expires_at", instant, nullable=False),
        sa.Column("expires_at", instant, nullable=False),
        sa.Column("used_at", instant),
    )


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
    op.drop_index(USERNAME_KEY_INDEX, "users")
    op.drop_column("users", "username_key")
    op.drop_column("users", "token_version")
    op.drop_index(MONTH_INDEX, "user_monthly_token_usage", if_exists=True)
