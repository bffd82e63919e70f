"""Members: whom machines believe to be present."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "members",
        sa.Column("key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("member", sa.LargeBinary, nullable=False),
        sa.Column("sender", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("key", "member", name="pk_members"),
        sqlite_with_rowid=False,
    )
