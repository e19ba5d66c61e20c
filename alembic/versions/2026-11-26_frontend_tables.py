"""Create or adopt preferences, feedback and model categories.

Revision ID: 0011
Revises: 0010

Adopting adds missing columns and indexes, and drops the foreign key of a category to the earlier backend's own list of
models. A downgrade keeps the tables, because the earlier backend reads them.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.engine.reflection import Inspector

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

big_key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
instant = sa.DateTime(timezone=True).with_variant(sa.String(), "sqlite")
ONE_EACH = "user_preferences"
NAMES = {"fk": "fk_%(table_name)s_%(column_0_name)s"}


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '3s'")
    inspector = sa.inspect(op.get_bind())
    present = set(inspector.get_table_names())
    for table, columns in tables().items():
        if table in present:
            adopt(inspector, table, columns)
        else:
            op.create_table(table, *columns)
            inspector.clear_cache()
        indexed = {tuple(index["column_names"])[:1] for index in inspector.get_indexes(table)}
        for name in ("user_id", "message_id"):
            if any(column.name == name for column in columns) and (name,) not in indexed:
                op.create_index(f"ix_{table}_{name}", table, [name], unique=table == ONE_EACH and table not in present)


def tables() -> dict[str, list[sa.Column[object]]]:
    return {
        "user_preferences": [
            sa.Column("id", big_key, primary_key=True),
            sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id"), nullable=False),
            sa.Column("nickname", sa.String()),
            sa.Column("job", sa.String()),
            sa.Column("chatbot_preference", sa.Text()),
            sa.Column("created_at", instant),
            sa.Column("updated_at", instant),
        ],
        "feedback": [
            sa.Column("id", big_key, primary_key=True),
            sa.Column("message_id", sa.BigInteger(), sa.ForeignKey("messages.id"), nullable=False),
            sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id"), nullable=False),
            sa.Column("feedback_type", sa.String(), nullable=False),
            sa.Column("description", sa.Text()),
            sa.Column("created_at", instant),
        ],
        "user_model_categories": [
            sa.Column("id", big_key, primary_key=True),
            sa.Column("user_id", sa.Integer(), sa.ForeignKey("users.id"), nullable=False),
            sa.Column("category_name", sa.String(), nullable=False),
            sa.Column("display_name", sa.String(), nullable=False),
            sa.Column("model_id", sa.String(), nullable=False),
            sa.Column("description", sa.Text()),
            sa.Column("sort_order", sa.Integer()),
            sa.Column("is_active", sa.Boolean()),
            sa.Column("created_at", instant),
            sa.Column("updated_at", instant),
        ],
    }


def adopt(inspector: Inspector, table: str, columns: Sequence[sa.Column[object]]) -> None:
    present = {column["name"] for column in inspector.get_columns(table)}
    for column in columns:
        if column.name not in present:
            op.add_column(table, sa.Column(column.name, column.type))
    keys = [key for key in inspector.get_foreign_keys(table) if key["referred_table"] == "model_metadata"]
    for key in keys:
        name = key["name"] or f"fk_{table}_{key['constrained_columns'][0]}"
        with op.batch_alter_table(table, naming_convention=NAMES) as batch:
            batch.drop_constraint(name, type_="foreignkey")


def downgrade() -> None:
    """Keep the tables."""
