"""Sessions: journal, checkpoints, timers; engines."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "engines",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("engine", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_engines"),
    )
    op.create_table(
        "sessions",
        sa.Column("key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("machine_id", sa.String(32), nullable=False),
        sa.Column("session_id", sa.LargeBinary, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("hears_presence", sa.Boolean, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("finished_at_ms", sa.BigInteger, nullable=True),
        sa.Column("parent", sa.LargeBinary, nullable=True),
        sa.Column("forked_at", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("key", name="pk_sessions"),
        sa.UniqueConstraint("machine_id", "session_id", name="uq_sessions_machine_id_session_id"),
    )
    op.create_index("ix_sessions_finished_at_ms", "sessions", ["finished_at_ms"])
    op.create_table(
        "journal",
        sa.Column("key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("seq", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("attempt", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("input", sa.LargeBinary, nullable=False),
        sa.Column("now_ms", sa.BigInteger, nullable=False),
        sa.Column("event_id", sa.LargeBinary, nullable=True),
        sa.Column("changed", sa.Boolean, nullable=False),
        sa.Column("error", sa.LargeBinary, nullable=True),
        sa.PrimaryKeyConstraint("key", "seq", "attempt", name="pk_journal"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "uq_journal_key_event_id",
        "journal",
        ["key", "event_id"],
        unique=True,
        sqlite_where=sa.text("event_id IS NOT NULL"),
        postgresql_where=sa.text("event_id IS NOT NULL"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("seq", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("snapshot", sa.LargeBinary, nullable=False),
        sa.Column("finished", sa.Boolean, nullable=False),
        sa.Column("timers", sa.LargeBinary, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", "seq", name="pk_checkpoints"),
    )
    op.create_table(
        "timers",
        sa.Column("key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("timer", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("due_at_ms", sa.BigInteger, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("key", "timer", name="pk_timers"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_timers_due_at_ms", "timers", ["due_at_ms"])
