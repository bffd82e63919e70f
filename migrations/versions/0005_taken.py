"""The journal says whether a transition of the machine took an event, and which event a timer was.
Of older lines nobody knows.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("journal", sa.Column("taken", sa.Boolean, nullable=True))
    op.add_column("journal", sa.Column("cause", sa.LargeBinary, nullable=True))
