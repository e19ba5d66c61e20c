"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}

Rules: import only alembic and sqlalchemy, never the models; a downgrade that works; on PostgreSQL first
`SET LOCAL lock_timeout`, never a rewrite of `messages` nor a long lock of it: add nullable columns, let
`migrate_token_data.py` fill them, build indexes concurrently; no loops over data.
"""

import sqlalchemy as sa

from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
