"""Calendars: events that machines are sent at certain times, and what came of them."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "calendar",
        sa.Column("machine_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("entry", sa.LargeBinary, nullable=False),
        sa.Column("due_at_ms", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("machine_id", "name", name="pk_calendar"),
    )
    op.create_index("ix_calendar_due_at_ms", "calendar", ["due_at_ms"])
    op.create_table(
        "calendar_runs",
        sa.Column("machine_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("ran_at_ms", sa.BigInteger, nullable=False),
        sa.Column("outcome", sa.String(64), nullable=False),
        sa.Column("detail", sa.LargeBinary, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("machine_id", "name", "at_ms", name="pk_calendar_runs"),
    )
