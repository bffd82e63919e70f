"""Projects: machines and tokens belong to one. What there was is in `default`, with all rights."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    projects = op.create_table(
        "projects",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.UniqueConstraint("name", name="uq_projects_name"),
    )
    op.bulk_insert(projects, [{"id": "default", "name": "default", "created_at_ms": 0}])
    if op.get_bind().dialect.name == "sqlite":
        _rebuild_machines()
    else:
        project = sa.Column("project_id", sa.String(32), nullable=False, server_default="default")
        op.add_column("machines", project)
        op.drop_constraint("uq_machines_name", "machines")
        op.create_unique_constraint(
            "uq_machines_project_id_name", "machines", ["project_id", "name"]
        )
    op.add_column("tokens", sa.Column("project_id", sa.String(32), nullable=True))
    op.add_column(
        "tokens",
        sa.Column(
            "scopes", sa.String(200), nullable=False, server_default="deploy read operate admin"
        ),
    )
    op.execute("UPDATE tokens SET project_id = 'default'")
    op.add_column("tokens", sa.Column("expires_at_ms", sa.BigInteger, nullable=True))
    op.add_column("tokens", sa.Column("used_at_ms", sa.BigInteger, nullable=True))


def _rebuild_machines() -> None:
    """SQLite cannot take a constraint away from a table. Source:
    https://sqlite.org/lang_altertable.html#otheralter, whose first step the hub has made: dropping
    the table would delete all versions, were foreign keys enforced.
    """
    connection = op.get_bind()
    if connection.scalar(sa.text("PRAGMA foreign_keys")):
        raise RuntimeError("foreign keys are enforced: versions would be deleted")
    op.create_table(
        "new_machines",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("active_version", sa.Integer, nullable=False, server_default="0"),
        sa.Column("project_id", sa.String(32), nullable=False, server_default="default"),
        sa.PrimaryKeyConstraint("id", name="pk_machines"),
        sa.UniqueConstraint("project_id", "name", name="uq_machines_project_id_name"),
    )
    op.execute(
        "INSERT INTO new_machines (id, name, created_at_ms, active_version) "
        "SELECT id, name, created_at_ms, active_version FROM machines"
    )
    op.drop_table("machines")
    op.rename_table("new_machines", "machines")
