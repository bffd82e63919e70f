"""Private machines, publishable keys, keys of connect tokens, revocations, quotas, and who did what.

Machines that there are stay public, as they were.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    private = sa.Column("private", sa.Boolean, nullable=False, server_default=sa.false())
    op.add_column("machines", private)
    op.add_column("projects", sa.Column("quotas", sa.LargeBinary, nullable=True))
    op.add_column("tokens", sa.Column("publishable", sa.String(100), nullable=True))
    op.add_column("tokens", sa.Column("origins", sa.String(2000), nullable=True))
    op.create_table(
        "jwt_keys",
        sa.Column("kid", sa.String(32), nullable=False),
        sa.Column("project_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("secret", sa.LargeBinary, nullable=True),
        sa.Column("jwks_url", sa.String(500), nullable=True),
        sa.Column("issuer", sa.String(500), nullable=True),
        sa.Column("audience", sa.String(500), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("kid", name="pk_jwt_keys"),
    )
    op.create_table(
        "revocations",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("project_id", sa.String(32), nullable=False),
        sa.Column("sub", sa.LargeBinary, nullable=True),
        sa.Column("machine_id", sa.String(32), nullable=True),
        sa.Column("session_id", sa.LargeBinary, nullable=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_revocations"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("project_id", sa.String(32), nullable=True),
        sa.Column("who", sa.LargeBinary, nullable=False),
        sa.Column("what", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_at_ms", "audit", ["at_ms"])
