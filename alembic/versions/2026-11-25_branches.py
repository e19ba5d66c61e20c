"""Add branches of conversations, images and document context.

Revision ID: 0010
Revises: 0009

Later versions of the earlier backend had these columns. An existing column stays unchanged. A downgrade keeps the
columns, because they hold content of conversations that the earlier backend reads.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

WANTED: dict[str, dict[str, sa.types.TypeEngine[object]]] = {
    "conversations": {"parent_conversation_id": sa.String(), "edited_message_id": sa.BigInteger()},
    "messages": {
        "parent_message_id": sa.BigInteger(),
        "branch_id": sa.String(),
        "is_active_branch": sa.Boolean(),
        "image_urls": sa.Text(),
        "document_context": sa.Text(),
    },
}


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '3s'")
    inspector = sa.inspect(op.get_bind())
    for table, columns in WANTED.items():
        present = {column["name"] for column in inspector.get_columns(table)}
        for name, kind in columns.items():
            if name not in present:
                op.add_column(table, sa.Column(name, kind))


def downgrade() -> None:
    """Keep the columns, which are null unless the earlier backend wrote them."""
