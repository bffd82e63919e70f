"""A hub keeps notes of its own: how sessions' time stands, and that the database could be written.
A session says up to which input its journal may have gaps, an image what it is compressed against.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "notes",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
    op.add_column("images", sa.Column("template", sa.String(64), nullable=True))
    op.add_column("sessions", sa.Column("compacted_to", sa.BigInteger, nullable=True))
