"""Requests that machines make to the world, and the secrets of projects."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "effects",
        sa.Column("key", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("effect", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("request", sa.LargeBinary, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("due_at_ms", sa.BigInteger, nullable=True),
        sa.Column("node", sa.String(32), nullable=True),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("tried_at_ms", sa.BigInteger, nullable=True),
        sa.Column("trouble", sa.LargeBinary, nullable=True),
        sa.Column("ended_at_ms", sa.BigInteger, nullable=True),
        sa.Column("ended_seq", sa.BigInteger, nullable=True),
        sa.Column("outcome", sa.String(64), nullable=True),
        sa.Column("status", sa.Integer, nullable=True),
        sa.Column("took_ms", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("key", "effect", name="pk_effects"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_effects_due_at_ms", "effects", ["due_at_ms"])
    op.create_index(
        "ix_effects_pending",
        "effects",
        ["key"],
        sqlite_where=sa.text("ended_at_ms IS NULL"),
        postgresql_where=sa.text("ended_at_ms IS NULL"),
    )
    op.create_table(
        "secrets",
        sa.Column("project_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("hosts", sa.LargeBinary, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("changed_at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project_id", "name", name="pk_secrets"),
    )
