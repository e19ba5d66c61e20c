"""Create the four tables, or adopt those of an earlier backend.

Revision ID: 0001
Revises:

Adopting adds nullable columns and drops NOT NULL constraints. `messages` is never rewritten, on either database. The
rollup, which is small in comparison, gets 64-bit counts and exact money.
"""

import logging
import re

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError
from sqlalchemy.engine.reflection import Inspector

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

logger = logging.getLogger("alembic.versions.tables")

KNOWN_COLUMNS = {
    "users": {"id", "username", "email", "hashed_password", "role", "is_active", "created_at"},
    "conversations": {"id", "user_id", "title", "model_type", "created_at", "updated_at"},
    "messages": {"id", "conversation_id", "role", "content", "created_at"},
    "user_monthly_token_usage": {"id", "user_id", "year", "month", "last_updated", "created_at"},
}
FIGURES = ("input_tokens", "output_tokens", "total_tokens", "message_count")
COUNTED_ROWS_ARE_SOUND = (
    "usage_date IS NULL OR (user_id IS NOT NULL AND role = 'assistant' AND input_tokens >= 0"
    " AND coalesce(output_tokens, 0) >= 0 AND coalesce(cached_input_tokens, 0) BETWEEN 0 AND input_tokens"
    " AND coalesce(cost, 0) >= 0)"
)
MAX_SUM = 2**53  # larger sums are damaged
MAX_MONTHLY_COST = 900_000_000  # dollars; below 2**63 units of 1e-10 dollars, above which SQLite would use floats

big_key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
instant = sa.DateTime(timezone=True).with_variant(sa.String(), "sqlite")
usd = sa.Numeric(20, 10).with_variant(sa.BigInteger(), "sqlite")


def upgrade() -> None:
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '3s'")
    inspector = sa.inspect(bind)
    present = set(inspector.get_table_names())
    for table, create, adopt in (
        ("users", create_users, leave),
        ("conversations", create_conversations, adopt_conversations),
        ("messages", create_messages, adopt_messages),
        ("user_monthly_token_usage", create_rollup, adopt_rollup),
    ):
        if table in present:
            check_columns(inspector, table)
            adopt(inspector)
        else:
            create()
    op.create_table(
        "foundation_settings",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("value", sa.String(), nullable=False),
    )
    # Stays due until the script has carried over the usage whose messages the earlier backend deleted.
    op.execute(
        "INSERT INTO foundation_settings (name, value)"
        " SELECT 'old_months', 'due' WHERE EXISTS (SELECT 1 FROM user_monthly_token_usage)"
    )


def check_columns(inspector: Inspector, table: str) -> None:
    missing = KNOWN_COLUMNS[table] - column_names(inspector, table)
    if missing:
        raise CommandError(
            f"the table {table} has no column {', '.join(sorted(missing))}: it is not of a foundation-be database"
        )


def column_names(inspector: Inspector, table: str) -> set[str]:
    return {column["name"] for column in inspector.get_columns(table)}


def create_users() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("username", sa.String(), nullable=False, unique=True),
        sa.Column("email", sa.String(), nullable=False, unique=True),
        sa.Column("hashed_password", sa.String(), nullable=False),
        sa.Column("role", sa.String()),
        sa.Column("is_active", sa.Boolean()),
        sa.Column("created_at", instant),
    )


def create_conversations() -> None:
    op.create_table(
        "conversations",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id")),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("model_type", sa.String(), nullable=False),
        sa.Column("created_at", instant),
        sa.Column("updated_at", instant),
        sa.Column("deleted_at", instant),
    )


def create_messages() -> None:
    op.create_table(
        "messages",
        sa.Column("id", big_key, primary_key=True),
        sa.Column("conversation_id", sa.String(), sa.ForeignKey("conversations.id")),
        sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id")),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("content", sa.Text()),
        sa.Column("created_at", instant),
        sa.Column("status", sa.String()),
        sa.Column("model", sa.String()),
        sa.Column("input_tokens", sa.BigInteger()),
        sa.Column("output_tokens", sa.BigInteger()),
        sa.Column("cached_input_tokens", sa.BigInteger()),
        sa.Column("cost", usd),
        sa.Column("price_source", sa.String()),
        sa.Column("usage_estimated", sa.Boolean()),
        sa.Column("idempotency_key", sa.String()),
        sa.Column("request_hash", sa.String()),
        sa.Column("turn", sa.String()),
        sa.Column("usage_date", sa.Date()),
        sa.CheckConstraint(COUNTED_ROWS_ARE_SOUND, name="ck_messages_counted"),
    )


def create_rollup() -> None:
    op.create_table(
        "user_monthly_token_usage",
        sa.Column("id", big_key, primary_key=True),
        sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("year", sa.Integer(), nullable=False),
        sa.Column("month", sa.Integer(), nullable=False),
        *(sa.Column(figure, sa.BigInteger(), nullable=False) for figure in FIGURES),
        sa.Column("total_cost", usd, nullable=False),
        sa.Column("last_updated", instant),
        sa.Column("created_at", instant),
        sa.UniqueConstraint("user_id", "year", "month", name="unique_user_month"),
        *(sa.CheckConstraint(rule, name=name) for name, rule in rollup_checks().items()),
    )


def rollup_checks() -> dict[str, str]:
    most = MAX_MONTHLY_COST * 10**10 if op.get_bind().dialect.name == "sqlite" else MAX_MONTHLY_COST
    return {
        "ck_user_monthly_token_usage_tokens": (
            "input_tokens >= 0 AND output_tokens >= 0 AND total_tokens = input_tokens + output_tokens"
            " AND message_count >= 0"
        ),
        "ck_user_monthly_token_usage_total_cost": f"total_cost BETWEEN 0 AND {most}",
        "ck_user_monthly_token_usage_month": "month BETWEEN 1 AND 12",
    }


def leave(_inspector: Inspector) -> None:
    """Add nothing."""


def adopt_conversations(inspector: Inspector) -> None:
    if "deleted_at" not in column_names(inspector, "conversations"):
        op.add_column("conversations", sa.Column("deleted_at", instant))


def adopt_messages(inspector: Inspector) -> None:
    present = column_names(inspector, "messages")
    tokens = "BIGINT"
    money = "BIGINT" if op.get_bind().dialect.name == "sqlite" else "NUMERIC(20, 10)"
    wanted = {
        # Inline, because PostgreSQL then does not check the rows of a new, empty column.
        "user_id": "INTEGER REFERENCES users (id)",
        "status": "VARCHAR",
        "model": "VARCHAR",
        "input_tokens": tokens,
        "output_tokens": tokens,
        "cached_input_tokens": tokens,
        "cost": money,
        "price_source": "VARCHAR",
        "usage_estimated": "BOOLEAN",
        "idempotency_key": "VARCHAR",
        "request_hash": "VARCHAR",
        "turn": "VARCHAR",
    }
    for name, definition in wanted.items():
        if name not in present:
            op.execute(f"ALTER TABLE messages ADD COLUMN {name} {definition}")
    check = f"CONSTRAINT ck_messages_counted CHECK ({COUNTED_ROWS_ARE_SOUND})"
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"ALTER TABLE messages ADD COLUMN usage_date DATE {check}")
        drop_not_null_on_sqlite(inspector, "messages", ("conversation_id", "content"))
    else:
        op.execute("ALTER TABLE messages ADD COLUMN usage_date DATE")
        op.execute(f"ALTER TABLE messages ADD {check} NOT VALID")  # validated, without a lock, by the next revision
        op.execute("ALTER TABLE messages ALTER conversation_id DROP NOT NULL, ALTER content DROP NOT NULL")


def drop_not_null_on_sqlite(inspector: Inspector, table: str, columns: tuple[str, ...]) -> None:
    """Drop NOT NULL without copying the table.

    Follows the procedure of https://sqlite.org/lang_altertable.html, section 7.
    """
    bind = op.get_bind()
    strict = {column["name"] for column in inspector.get_columns(table) if not column["nullable"]} & set(columns)
    if not strict:
        return
    sql = bind.scalar(sa.text("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = :name"), {"name": table})
    for column in strict:
        sql = re.sub(
            rf"""((?<![\w"`\[])["`\[]?{column}["`\]]?\s+\w+(?:\s*\([\d, ]*\))?)\s+NOT\s+NULL""",
            r"\1",
            sql,
            count=1,
            flags=re.IGNORECASE,
        )
    version = bind.scalar(sa.text("PRAGMA schema_version"))
    bind.exec_driver_sql("PRAGMA writable_schema = ON")
    bind.execute(
        sa.text("UPDATE sqlite_master SET sql = :sql WHERE type = 'table' AND name = :name"),
        {"sql": sql, "name": table},
    )
    bind.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    bind.exec_driver_sql("PRAGMA writable_schema = OFF")
    left = {column["name"] for column in sa.inspect(bind).get_columns(table) if not column["nullable"]} & set(columns)
    if left:  # a definition in an unusual form: copy the table, which is slow
        with op.batch_alter_table(table, recreate="always") as batch:
            for column in left:
                batch.alter_column(column, nullable=True)


def adopt_rollup(inspector: Inspector) -> None:
    present = column_names(inspector, "user_monthly_token_usage")
    for figure in (*FIGURES, "total_cost"):
        if figure not in present:
            op.add_column("user_monthly_token_usage", sa.Column(figure, sa.Integer()))
    clean_rollup()
    if op.get_bind().dialect.name == "sqlite":
        op.execute("UPDATE user_monthly_token_usage SET total_cost = round(total_cost * 10000000000)")
    uniques = inspector.get_unique_constraints("user_monthly_token_usage")
    with op.batch_alter_table("user_monthly_token_usage", recreate="auto") as batch:
        batch.alter_column("id", type_=big_key)
        for figure in FIGURES:
            batch.alter_column(figure, type_=sa.BigInteger(), nullable=False)
        # Converted through text, because PostgreSQL otherwise keeps only 15 digits of a float.
        batch.alter_column(
            "total_cost", type_=usd, nullable=False, postgresql_using="round(total_cost::text::numeric, 10)"
        )
        for column in ("user_id", "year", "month"):
            batch.alter_column(column, nullable=False)
        if not any(set(unique["column_names"]) == {"user_id", "year", "month"} for unique in uniques):
            batch.create_unique_constraint("unique_user_month", ["user_id", "year", "month"])
    op.execute("UPDATE user_monthly_token_usage SET total_tokens = input_tokens + output_tokens")
    with op.batch_alter_table("user_monthly_token_usage") as batch:
        for name, rule in rollup_checks().items():
            batch.create_check_constraint(name, rule)
    widen_rollup_sequence()


def clean_rollup() -> None:
    """Remove rows without a user or month, and zero unstorable figures.

    The log names each such row.
    """
    sqlite = op.get_bind().dialect.name == "sqlite"
    texts = " OR typeof(year) <> 'integer' OR typeof(month) <> 'integer'" if sqlite else ""
    gone = (
        "user_id IS NULL OR user_id NOT IN (SELECT id FROM users)"
        f" OR year IS NULL OR month IS NULL OR month NOT BETWEEN 1 AND 12 OR year NOT BETWEEN 1 AND 9999{texts}"
        " OR id NOT IN (SELECT max(id) FROM user_monthly_token_usage GROUP BY user_id, year, month)"
    )
    log_months(gone, "is removed, there is no such user or month, or a newer row of that month")
    op.execute(f"DELETE FROM user_monthly_token_usage WHERE {gone}")
    whole = "typeof({0}) = 'integer' AND {0}" if sqlite else "{0}"
    real = "typeof({0}) <> 'text' AND {0}" if sqlite else "{0}"
    countable = {figure: f"{whole.format(figure)} BETWEEN 0 AND {MAX_SUM}" for figure in FIGURES}
    countable["total_cost"] = f"{real.format('total_cost')} BETWEEN 0 AND {MAX_MONTHLY_COST - 1}"
    lost = [f"{name} IS NOT NULL AND NOT ({rule})" for name, rule in countable.items() if name != "total_tokens"]
    log_months(" OR ".join(lost), "has figures that cannot be counted and become 0")
    kept = [f"{name} = CASE WHEN {rule} THEN {name} ELSE 0 END" for name, rule in countable.items()]
    op.execute(f"UPDATE user_monthly_token_usage SET {', '.join(kept)}")


def log_months(wanted: str, what: str) -> None:
    """Log the months that a condition selects, with their figures."""
    columns = "user_id, year, month, input_tokens, output_tokens, total_cost, message_count"
    months = sa.text(f"SELECT {columns} FROM user_monthly_token_usage WHERE {wanted} ORDER BY user_id, year, month")
    for row in op.get_bind().execute(months):
        logger.warning(
            "the usage of user %s in %s-%s %s: %s messages, %s input and %s output tokens, $%s",
            *(row.user_id, row.year, row.month, what),
            *(row.message_count, row.input_tokens, row.output_tokens, row.total_cost),
        )


def widen_rollup_sequence() -> None:
    """Widen the sequence: each upsert consumes a number, also when updating.

    A 32-bit sequence would be exhausted.
    """
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        sequence = bind.scalar(sa.text("SELECT pg_get_serial_sequence('user_monthly_token_usage', 'id')"))
        if sequence:
            op.execute(f"ALTER SEQUENCE {sequence} AS BIGINT")


def downgrade() -> None:
    """Return to the newest tables of the earlier backend, with every row.

    Rows added since the upgrade get the earlier backend's own figures. Columns unknown to that backend are dropped:
    model, status, keys, cached tokens. Messages without a conversation get one, which keeps their owner.
    """
    bind = op.get_bind()
    keep_owners()
    op.drop_table("foundation_settings")
    present = column_names(sa.inspect(bind), "messages")
    for name, kind in (("total_tokens", sa.Integer()), ("model_cost", sa.Float())):
        if name not in present:
            op.add_column("messages", sa.Column(name, kind))
    total = "(CAST(input_tokens AS BIGINT) + coalesce(output_tokens, 0))"
    dollars = "cost / 10000000000.0" if bind.dialect.name == "sqlite" else "cost::float8"
    op.execute(
        f"UPDATE messages SET total_tokens = CASE WHEN {total} <= 2147483647 THEN {total} END, model_cost = {dollars}"
        " WHERE usage_date IS NOT NULL AND status IS NOT NULL"  # old rows have no status
    )
    op.execute("UPDATE messages SET content = '' WHERE content IS NULL")
    has_orphans = bind.scalar(sa.text("SELECT count(*) FROM messages WHERE conversation_id IS NULL"))
    with op.batch_alter_table("messages") as batch:
        batch.drop_constraint("ck_messages_counted", type_="check")
        for name in (
            "usage_date",
            "turn",
            "request_hash",
            "idempotency_key",
            "usage_estimated",
            "price_source",
            "cost",
            "cached_input_tokens",
            "model",
            "status",
        ):
            batch.drop_column(name)
        batch.drop_column("user_id")
        batch.alter_column("content", existing_type=sa.Text(), nullable=False)
        if not has_orphans:
            batch.alter_column("conversation_id", existing_type=sa.String(), nullable=False)
    restore_defaults()
    with op.batch_alter_table("conversations") as batch:
        batch.drop_column("deleted_at")
    with op.batch_alter_table("user_monthly_token_usage") as batch:
        for name in rollup_checks():
            batch.drop_constraint(name, type_="check")
        batch.alter_column("total_cost", type_=sa.Float(), existing_nullable=False)
    if bind.dialect.name == "sqlite":
        op.execute("UPDATE user_monthly_token_usage SET total_cost = total_cost / 10000000000.0")


def keep_owners() -> None:
    """Give every message without a conversation one of its user.

    The earlier backend finds the owner of a message by its conversation.
    """
    is_lost = "conversation_id IS NULL AND user_id IS NOT NULL"
    now = "CURRENT_TIMESTAMP"
    op.execute(
        "INSERT INTO conversations (id, user_id, title, model_type, created_at, updated_at)"
        f" SELECT 'usage-' || user_id, user_id, 'Usage of other services', 'Standard', {now}, {now}"
        f" FROM messages WHERE {is_lost} AND 'usage-' || user_id NOT IN (SELECT id FROM conversations) GROUP BY user_id"
    )
    op.execute(f"UPDATE messages SET conversation_id = 'usage-' || user_id WHERE {is_lost}")


def restore_defaults() -> None:
    """Give instants the earlier backend's default.

    Without a default, it stores null, and then fails.
    """
    inspector = sa.inspect(op.get_bind())
    for table in (*KNOWN_COLUMNS, "feedback", "user_preferences", "user_model_categories"):
        if not inspector.has_table(table):
            continue
        missing = [
            column["name"]
            for column in inspector.get_columns(table)
            if column["name"] in ("created_at", "updated_at", "last_updated") and column["default"] is None
        ]
        if missing:
            with op.batch_alter_table(table) as batch:
                for name in missing:
                    batch.alter_column(name, existing_type=instant, server_default=sa.func.now())
