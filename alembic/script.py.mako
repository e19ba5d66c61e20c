"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}

Rules: Import only alembic and sqlalchemy, never the models. Write a downgrade that works. On PostgreSQL, start with
`SET LOCAL lock_timeout`. Never rewrite `messages`, and never lock the table for long: add nullable columns, let
`migrate_token_data.py` fill them, and build indexes concurrently. Do not loop over data.
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
