"""Let processes of the earlier backend run concurrently on PostgreSQL.

Revision ID: 0014
Revises: 0013

Triggers fill the earlier backend's columns, and repair what it writes. `migrate_token_data.py --finish` removes them.
Only tables of the earlier backend have a default for `users.created_at`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

MOST = 900_000_000  # dollars
IS_SOUND = (
    "(NEW.input_tokens >= 0 AND NEW.output_tokens >= 0 AND NEW.total_tokens = NEW.input_tokens + NEW.output_tokens"
    f" AND NEW.message_count >= 0 AND NEW.total_cost BETWEEN 0 AND {MOST})"
)
REPAIR_MONTH = f"""
    NEW.input_tokens := greatest(coalesce(NEW.input_tokens, 0), 0);
    NEW.output_tokens := greatest(coalesce(NEW.output_tokens, 0), 0);
    NEW.total_tokens := NEW.input_tokens + NEW.output_tokens;
    NEW.message_count := greatest(coalesce(NEW.message_count, 0), 0);
    NEW.total_cost := CASE WHEN NEW.total_cost BETWEEN 0 AND {MOST} THEN NEW.total_cost ELSE 0 END;
"""
# The earlier backend fails on a message without content.
FILL_CONTENT = "NEW.content := coalesce(NEW.content, '');"
FILL_TOTAL = """
    NEW.total_tokens := CASE
        WHEN NEW.input_tokens::bigint + coalesce(NEW.output_tokens, 0) <= 2147483647
        THEN NEW.input_tokens::bigint + coalesce(NEW.output_tokens, 0) END;
"""
FILL_COST = "NEW.model_cost := NEW.cost;"
# Rows that the earlier backend does not know, and whose keys would refuse its deletion of a user.
UNKNOWN_TABLES = (
    "refresh_tokens",
    "revoked_tokens",
    "api_keys",
    "password_resets",
    "usage_adjustments",
    "user_daily_token_usage",
    "message_images",
)
TRIGGERS = {
    "foundation_old_columns": "messages",
    "foundation_old_months": "user_monthly_token_usage",
    "foundation_old_deletions": "users",
    "foundation_old_feedback": "messages",
}


def upgrade() -> None:
    bind = op.get_bind()
    if bind.dialect.name != "postgresql":
        return
    op.execute("SET LOCAL lock_timeout = '3s'")
    inspector = sa.inspect(bind)
    made = next(column for column in inspector.get_columns("users") if column["name"] == "created_at")
    if made["default"] is None:
        return
    columns = {column["name"] for column in inspector.get_columns("messages")}
    fill = FILL_TOTAL if "total_tokens" in columns else ""
    fill += FILL_COST if "model_cost" in columns else ""
    # Rows of the earlier backend have no status, and keep their figures.
    body = f"{FILL_CONTENT} IF NEW.status IS NOT NULL THEN {fill} END IF;" if fill else FILL_CONTENT
    create("foundation_old_columns", "INSERT OR UPDATE", "NEW.status IS NOT NULL OR NEW.content IS NULL", body)
    create("foundation_old_months", "INSERT OR UPDATE", f"{IS_SOUND} IS NOT TRUE", REPAIR_MONTH)
    deletions = " ".join(f"DELETE FROM {table} WHERE user_id = OLD.id;" for table in UNKNOWN_TABLES)
    create("foundation_old_deletions", "DELETE", "TRUE", deletions, returned="OLD")
    # The earlier backend deletes messages, but not the feedback on them.
    feedback = "DELETE FROM feedback WHERE message_id = OLD.id;"
    create("foundation_old_feedback", "DELETE", "TRUE", feedback, returned="OLD")
    op.execute("INSERT INTO foundation_settings (name, value) VALUES ('earlier_backend', 'may run')")


def create(name: str, events: str, condition: str, body: str, returned: str = "NEW") -> None:
    op.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body} RETURN {returned}; END$$")
    op.execute(
        f"CREATE TRIGGER {name} BEFORE {events} ON {TRIGGERS[name]}"
        f" FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION {name}()"
    )


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for name, table in TRIGGERS.items():
            op.execute(f"DROP TRIGGER IF EXISTS {name} ON {table}")
            op.execute(f"DROP FUNCTION IF EXISTS {name}()")
        op.execute("DELETE FROM foundation_settings WHERE name = 'earlier_backend'")
