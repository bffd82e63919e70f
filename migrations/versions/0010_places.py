"""Up to where clients of a session have heard, for those that cannot say so themselves."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "places",
        sa.Column("key", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("client", sa.LargeBinary, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", "client", name="pk_places"),
        sqlite_with_rowid=False,
    )
