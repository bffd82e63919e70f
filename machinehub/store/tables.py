"""The tables. Migrations are written by hand against these; a test holds the two against each other."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary, MetaData, String, Table, UniqueConstraint

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s", "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s",
    }  # fmt: skip
)

machines = Table(
    "machines", metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("active_version", Integer, nullable=False, server_default="0"),
)  # fmt: skip

images = Table(
    "images", metadata,
    Column("digest", String(64), primary_key=True),
    Column("engine", String(64), nullable=False),
    Column("image", LargeBinary, nullable=False),  # zstd of the image module
    Column("definition", LargeBinary, nullable=False),  # JSON
)  # fmt: skip

versions = Table(
    "versions", metadata,
    Column("machine_id", String(32), ForeignKey("machines.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("digest", String(64), ForeignKey("images.digest"), nullable=False, index=True),
    Column("entry", String(512), nullable=False),
    Column("files", LargeBinary, nullable=False),  # zstd of JSON {path: content}
    Column("message", String(1000), nullable=False, server_default=""),
    Column("created_at_ms", BigInteger, nullable=False),
    UniqueConstraint("machine_id", "digest"),
)  # fmt: skip

tokens = Table(
    "tokens", metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(100), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),  # SHA-256 of the token: 256 random bits need no salt
    Column("created_at_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger, nullable=True),
)  # fmt: skip
