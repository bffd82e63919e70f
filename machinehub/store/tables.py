"""The tables.

Migrations are written by hand against these; a test holds the two against each other.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

projects = Table(
    "projects",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("quotas", LargeBinary, nullable=True),  # JSON; NULL for none
)

machines = Table(
    "machines",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("active_version", Integer, nullable=False, server_default="0"),
    Column("project_id", String(32), nullable=False, server_default="default"),
    Column("private", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("project_id", "name"),
)

images = Table(
    "images",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("engine", String(64), nullable=False),
    Column("image", LargeBinary, nullable=False),  # zstd of the image module
    # Of `engines`: what the image is compressed against; NULL for nothing.
    Column("template", String(64), nullable=True),
    Column("definition", LargeBinary, nullable=False),  # JSON
)

versions = Table(
    "versions",
    metadata,
    Column(
        "machine_id", String(32), ForeignKey("machines.id", ondelete="CASCADE"), primary_key=True
    ),
    Column("number", Integer, primary_key=True),
    Column("digest", String(64), ForeignKey("images.digest"), nullable=False, index=True),
    Column("entry", String(512), nullable=False),
    Column("files", LargeBinary, nullable=False),  # zstd of JSON {path: content}
    Column("message", String(1000), nullable=False, server_default=""),
    Column("created_at_ms", BigInteger, nullable=False),
    UniqueConstraint("machine_id", "digest"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(100), nullable=False),
    Column(
        "hash", String(64), nullable=False, unique=True
    ),  # SHA-256 of the token: 256 random bits need no salt
    Column("created_at_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger, nullable=True),
    Column("project_id", String(32), nullable=True),  # NULL: the whole hub
    Column("scopes", String(200), nullable=False, server_default="deploy read operate admin"),
    Column("expires_at_ms", BigInteger, nullable=True),
    Column("used_at_ms", BigInteger, nullable=True),
    Column("publishable", String(100), nullable=True),  # the key itself, of a publishable one
    Column("origins", String(2000), nullable=True),  # where its pages are, parted by spaces
)

jwt_keys = Table(  # by which connect tokens are believed: a secret, or where public keys are
    "jwt_keys",
    metadata,
    Column("kid", String(32), primary_key=True),
    Column("project_id", String(32), nullable=False),
    Column("name", String(100), nullable=False),
    Column("secret", LargeBinary, nullable=True),
    Column("jwks_url", String(500), nullable=True),
    Column("issuer", String(500), nullable=True),
    Column("audience", String(500), nullable=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger, nullable=True),
)

revocations = Table(  # connect tokens that were issued before `at_ms` are not valid for these
    "revocations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("project_id", String(32), nullable=False),
    Column("sub", LargeBinary, nullable=True),  # UTF-8
    Column("machine_id", String(32), nullable=True),
    Column("session_id", LargeBinary, nullable=True),  # UTF-8
    Column("at_ms", BigInteger, nullable=False),
)

audit = Table(  # who did what
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at_ms", BigInteger, nullable=False, index=True),
    Column("project_id", String(32), nullable=True),  # NULL: the whole hub
    Column("who", LargeBinary, nullable=False),  # UTF-8
    Column("what", LargeBinary, nullable=False),  # UTF-8
)

# What strangers named or wrote is kept as bytes: Postgres refuses some Unicode as text, and one
# such value must not hold up a commit. No foreign keys from here on: they would cost every event a
# lookup, and every delete goes through one place (sessions.py).

engines = Table(
    "engines",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("engine", LargeBinary, nullable=False),  # zstd of the WASM, or of a template of images
)

sessions = Table(
    "sessions",
    metadata,
    Column("key", BigInteger, primary_key=True, autoincrement=False),
    Column("machine_id", String(32), nullable=False),
    Column("session_id", LargeBinary, nullable=False),  # UTF-8
    Column("version", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("hears_presence", Boolean, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("finished_at_ms", BigInteger, nullable=True),
    Column("parent", LargeBinary, nullable=True),  # UTF-8
    Column("forked_at", BigInteger, nullable=True),
    # Inputs up to this seq may be missing from the journal: they were pruned or compacted.
    Column("compacted_to", BigInteger, nullable=True),
    # Of `nodes`: who has it in memory, where several hubs share a database; and how often it was
    # claimed, by which a release is told from an earlier one.
    Column("owner", String(32), nullable=True),
    Column("claims", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("machine_id", "session_id"),
    Index("ix_sessions_finished_at_ms", "finished_at_ms"),
)

journal = Table(
    "journal",
    metadata,
    Column("key", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column(
        "kind", String(32).with_variant(String(8), "sqlite"), nullable=False
    ),  # SQLite keeps any
    Column("input", LargeBinary, nullable=False),
    Column("now_ms", BigInteger, nullable=False),
    Column("event_id", LargeBinary, nullable=True),  # UTF-8
    Column("changed", Boolean, nullable=False),
    Column("error", LargeBinary, nullable=True),  # JSON [code, detail]
    Column("format", SmallInteger, nullable=False, server_default="1"),  # of `input`
    Column("taken", Boolean, nullable=True),
    Column("cause", LargeBinary, nullable=True),  # UTF-8
    Index(
        "uq_journal_key_event_id",
        "key",
        "event_id",
        unique=True,
        sqlite_where=text("event_id IS NOT NULL"),
        postgresql_where=text("event_id IS NOT NULL"),
    ),
    sqlite_with_rowid=False,  # clustered by session, since that is how it is read
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("key", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
    Column("snapshot", LargeBinary, nullable=False),  # JSON
    Column("finished", Boolean, nullable=False),
    Column("timers", LargeBinary, nullable=False),  # MessagePack {timer: due_at_ms}
    Column("at_ms", BigInteger, nullable=False),
)

members = Table(  # whom machines that hear of presence believe to be there
    "members",
    metadata,
    Column("key", BigInteger, primary_key=True, autoincrement=False),
    Column("member", LargeBinary, primary_key=True),  # UTF-8
    Column("sender", LargeBinary, nullable=False),  # JSON
    sqlite_with_rowid=False,
)

effects = Table(  # what machines asked of the world, and how that ended
    "effects",
    metadata,
    Column("key", BigInteger, primary_key=True, autoincrement=False),
    Column("effect", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),  # of the turn that asked
    Column("ordinal", Integer, nullable=False),
    Column("request", LargeBinary, nullable=False),  # JSON
    Column("at_ms", BigInteger, nullable=False),
    Column("depth", Integer, nullable=False),
    # NULL: it ended, or is not to be sent.
    Column("due_at_ms", BigInteger, nullable=True, index=True),
    Column("node", String(32), nullable=True),  # which sends it, where hubs share a database
    Column("tries", Integer, nullable=False),
    Column("tried_at_ms", BigInteger, nullable=True),
    Column("trouble", LargeBinary, nullable=True),  # UTF-8
    Column("ended_at_ms", BigInteger, nullable=True),
    Column("ended_seq", BigInteger, nullable=True),
    Column("outcome", String(64), nullable=True),
    Column("status", Integer, nullable=True),
    Column("took_ms", BigInteger, nullable=True),
    Index(
        "ix_effects_pending",
        "key",
        sqlite_where=text("ended_at_ms IS NULL"),
        postgresql_where=text("ended_at_ms IS NULL"),
    ),
    sqlite_with_rowid=False,
)

secrets = Table(
    "secrets",
    metadata,
    Column("project_id", String(32), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("hosts", LargeBinary, nullable=False),  # JSON: where it may be sent
    Column("sealed", LargeBinary, nullable=False),  # AES-256-GCM: nonce, ciphertext, tag
    Column("key_id", String(16), nullable=False),  # by which it is sealed
    Column("created_at_ms", BigInteger, nullable=False),
    Column("changed_at_ms", BigInteger, nullable=False),
)

calendar = Table(  # what active versions say of their machines' calendars
    "calendar",
    metadata,
    Column("machine_id", String(32), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("entry", LargeBinary, nullable=False),  # JSON
    Column("due_at_ms", BigInteger, nullable=True, index=True),  # NULL: never
)

calendar_runs = Table(
    "calendar_runs",
    metadata,
    Column("machine_id", String(32), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("at_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("ran_at_ms", BigInteger, nullable=False),
    Column("outcome", String(64), nullable=False),
    Column("detail", LargeBinary, nullable=False),  # UTF-8
    Column("seq", BigInteger, nullable=True),
)

places = Table(  # up to where clients have heard that cannot say so when they come back
    "places",
    metadata,
    Column("key", BigInteger, primary_key=True, autoincrement=False),
    Column("client", LargeBinary, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

timers = Table(
    "timers",
    metadata,
    Column("key", BigInteger, primary_key=True, autoincrement=False),
    Column("timer", BigInteger, primary_key=True, autoincrement=False),
    Column("due_at_ms", BigInteger, nullable=False, index=True),
    Column("tries", Integer, nullable=False),
    sqlite_with_rowid=False,
)

# Hubs that share this database. The row of a node is its fence: each of its commits locks it for
# sharing, and whoever declares it dead updates it (docs/cluster.md).
nodes = Table(
    "nodes",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),  # host and process, for people
    Column("lock", Integer, nullable=False),  # the number of its advisory lock
    Column("capacity", Integer, nullable=False),
    Column("software", String(32), nullable=False),
    Column("started_at_ms", BigInteger, nullable=False),
    Column("ended_at_ms", BigInteger, nullable=True),
)

beats = Table(  # apart from `nodes`, whose rows commits lock
    "beats",
    metadata,
    Column("node", String(32), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("draining", Boolean, nullable=False),
    Column("told_to_drain", Boolean, nullable=False),
    Column("sessions", Integer, nullable=False),  # in memory
    Column("connections", Integer, nullable=False),
    Column("turns", BigInteger, nullable=False),  # since it started
)

# What the hub notes for itself: "clock" (MessagePack [session_ms, wall_ms]), "written".
notes = Table(
    "notes",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

# Which versions of what is kept for ever there may be here (sandbox/protocol/formats.py).
formats = Table(
    "formats",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("version", Integer, nullable=False),
)
