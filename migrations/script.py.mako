"""${message}

Rules: a migration runs while the previous version of the hub may still be running, so it only adds; what goes away goes
two releases later. Types are spelled here, never imported from tables.py, which moves on.
"""

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
