"""Add adjustments, split days by model, drop the conversation rollup.

Revision ID: 0006
Revises: 0005

Rows of the daily rollup keep their figures under an empty model until the script splits them by model. The
server reads a day's conversations from `messages` by the new index.
"""

from contextlib import AbstractContextManager, nullcontext

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

usd = sa.Numeric(20, 10).with_variant(sa.BigInteger(), "sqlite")
instant = sa.DateTime(timezone=True).with_variant(sa.String(), "sqlite")
DAYS, NEW_DAYS, MONTHS = "user_daily_token_usage", "new_user_daily_token_usage", "user_monthly_token_usage"
OLD_COUNTS = ("input_tokens", "output_tokens", "message_count")
COUNTS = ("unpriced_count", "estimated_count")
MAX_TOKENS = 2**53  # per row, so that the sums of a thousand rows stay within 64 bits
MAX_MONTHLY_COST = 900_000_000  # dollars
FORMER_INDEX, INDEX = "ix_messages_user_id_usage_date", "ix_messages_user_id_usage_date_conversation_id"
IS_OWNED = sa.text("user_id IS NOT NULL")


def upgrade() -> None:
    build_index(INDEX, ["user_id", "usage_date", "conversation_id"], replaces=FORMER_INDEX)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '3s'")
    for name in COUNTS:
        check = f"CONSTRAINT ck_{MONTHS}_{name} CHECK ({name} >= 0)"
        op.execute(f"ALTER TABLE {MONTHS} ADD COLUMN {name} BIGINT NOT NULL DEFAULT 0 {check}")
    create_sums("usage_adjustments", "reason")
    replace_days()
    op.drop_table("conversation_daily_token_usage")
    note_what_is_due()


def build_index(name: str, columns: list[str], replaces: str) -> None:
    with outside_of_transaction():
        if is_invalid(name):  # left behind by a concurrent build that was interrupted
            op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS "{name}"')
        op.create_index(
            name,
            "messages",
            columns,
            if_not_exists=True,
            postgresql_concurrently=True,
            postgresql_where=IS_OWNED,
            sqlite_where=IS_OWNED,
        )
        op.drop_index(replaces, "messages", if_exists=True, postgresql_concurrently=True)


def outside_of_transaction() -> AbstractContextManager[None]:
    context = op.get_context()
    return context.autocommit_block() if context.dialect.name == "postgresql" else nullcontext()


def is_invalid(index: str) -> bool:
    bind = op.get_bind()
    if bind.dialect.name != "postgresql":
        return False
    query = sa.text(
        "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE NOT i.indisvalid AND c.relname = :name AND pg_table_is_visible(c.oid)"
    )
    return bool(bind.scalar(query, {"name": index}))


def create_sums(table: str, *more_keys: str, name: str | None = None) -> None:
    """Create a table of sums by user, day, model and `more_keys`.

    The names of its constraints contain `name`.
    """
    dated = [sa.Column("created_at", instant, nullable=False)] if more_keys else []
    keys = ("user_id", "usage_date", "model", *more_keys)
    op.create_table(
        table,
        sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("usage_date", sa.Date(), nullable=False),
        *(sa.Column(key, sa.String(), nullable=False) for key in keys[2:]),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("total_cost", usd, nullable=False),
        sa.Column("message_count", sa.BigInteger(), nullable=False),
        *(sa.Column(count, sa.BigInteger(), nullable=False) for count in COUNTS),
        *dated,
        sa.PrimaryKeyConstraint(*keys, name=f"{name or table}_pkey"),
        sa.CheckConstraint(is_sound(*OLD_COUNTS, *COUNTS), f"ck_{name or table}"),
        sqlite_with_rowid=False,
    )


def is_sound(*counts: str) -> str:
    """Return the check constraints of every row.

    On PostgreSQL, the upper bounds also exclude NaN and infinite dates.
    """
    sqlite = op.get_bind().dialect.name == "sqlite"
    most = MAX_MONTHLY_COST * 10**10 if sqlite else MAX_MONTHLY_COST
    is_day = "usage_date = date(usage_date)" if sqlite else "usage_date BETWEEN '0001-01-02' AND '9999-12-30'"
    bounds = " AND ".join(f"{name} BETWEEN 0 AND {MAX_TOKENS}" for name in counts)
    return f"{bounds} AND total_cost BETWEEN 0 AND {most} AND {is_day}"


def replace_days() -> None:
    create_sums(NEW_DAYS, name=DAYS + "_by_model")
    figures = "input_tokens, output_tokens, total_cost, message_count"
    sound = is_sound(*OLD_COUNTS)
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"LOCK TABLE {DAYS} IN EXCLUSIVE MODE")  # rows added concurrently would be lost
    op.execute(
        f"INSERT INTO {NEW_DAYS} (user_id, usage_date, model, {figures}, unpriced_count, estimated_count)"
        f" SELECT user_id, usage_date, '', {figures}, 0, 0 FROM {DAYS} WHERE {sound}"
    )
    op.drop_table(DAYS)
    op.rename_table(NEW_DAYS, DAYS)


def note_what_is_due() -> None:
    """Mark the script as due where months exist.

    Where the script never ran, it will also carry over the excess of the months.
    """
    months = f"EXISTS (SELECT 1 FROM {MONTHS})"
    never_ran = "NOT EXISTS (SELECT 1 FROM foundation_settings WHERE name = 'last_full_backfill' AND value <> 'begun')"
    op.execute(
        "INSERT INTO foundation_settings (name, value)"
        f" SELECT 'old_months', 'due' WHERE {months} AND {never_ran}"
        " AND EXISTS (SELECT 1 FROM messages WHERE user_id IS NULL)"
        " AND NOT EXISTS (SELECT 1 FROM foundation_settings WHERE name = 'old_months')"
    )
    op.execute(f"DELETE FROM foundation_settings WHERE name = 'last_full_backfill' AND {months}")
    op.execute(f"INSERT INTO foundation_settings (name, value) SELECT 'last_full_backfill', 'begun' WHERE {months}")


def downgrade() -> None:
    """Return to the two finer rollups.

    The script of that version fills them again.
    """
    op.drop_table(DAYS)
    op.create_table(
        DAYS,
        *old_keys("usage_date"),
        *old_figures(),
        sa.Column("conversation_count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "usage_date"),
        sa.CheckConstraint(old_rule("conversation_count"), f"ck_{DAYS}"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "conversation_daily_token_usage",
        *old_keys("usage_date", "conversation_id"),
        *old_figures(),
        sa.Column("last_message_at", instant),
        sa.PrimaryKeyConstraint("user_id", "usage_date", "conversation_id"),
        sa.CheckConstraint(old_rule(), "ck_conversation_daily_token_usage"),
        sqlite_with_rowid=False,
    )
    op.drop_table("usage_adjustments")
    with op.batch_alter_table(MONTHS) as batch:
        for name in COUNTS:
            batch.drop_constraint(f"ck_{MONTHS}_{name}", type_="check")
            batch.drop_column(name)
    op.execute("DELETE FROM foundation_settings WHERE name = 'old_months'")
    build_index(FORMER_INDEX, ["user_id", "usage_date"], replaces=INDEX)


def old_keys(*names: str) -> list[sa.Column[object]]:
    kinds: dict[str, sa.types.TypeEngine[object]] = {"usage_date": sa.Date(), "conversation_id": sa.String()}
    owner = sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id"), nullable=False)
    return [owner, *(sa.Column(name, kinds[name], nullable=False) for name in names)]


def old_figures() -> list[sa.Column[int]]:
    tokens = [sa.Column(name, sa.BigInteger(), nullable=False) for name in OLD_COUNTS]
    return [*tokens[:2], sa.Column("total_cost", usd, nullable=False), *tokens[2:]]


def old_rule(*more: str) -> str:
    return " AND ".join(f"{name} >= 0" for name in (*OLD_COUNTS, "total_cost", *more))
