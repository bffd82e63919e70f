"""Versions of what is kept: the journal's inputs say theirs, and the database says which there may
be.

Kinds of inputs may have longer names. SQLite keeps texts of any length in any text column, and
changing one there would copy the whole journal.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "journal", sa.Column("format", sa.SmallInteger, nullable=False, server_default="1")
    )
    if op.get_bind().dialect.name != "sqlite":
        op.alter_column(
            "journal",
            "kind",
            type_=sa.String(32),
            existing_type=sa.String(8),
            existing_nullable=False,
        )
    op.create_table(
        "formats",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_formats"),
    )
