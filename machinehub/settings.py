"""Settings: what a hub is told by its command line and its environment.

Decides: names, defaults, and which combinations must not start. Every variable is listed in
docs/settings.md.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from machinehub import capacity
from machinehub.limits import Limits
from machinehub.model import Retention
from machinehub.paths import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX = "MACHINEHUB_"
LIMIT_PREFIX = PREFIX + "LIMIT_"
OTHERS = frozenset({"SERVER", "PROJECT", "CACHE", "CONFIG", "BUILT"})
"""Variables of commands that talk to a hub, of folders, and of the wheel's build."""
_ORCHESTRATORS = re.compile("MACHINEHUB_(SERVICE_.*|PORT_[0-9]+_.*)")
"""What Kubernetes tells every container about a service that is named machinehub, besides
`MACHINEHUB_PORT=tcp://...`.
"""
KEEPING = ("keep_checkpoints", "keep_checkpoint_every", "keep_journal", "expire_finished_s")


class BadSettings(Exception):
    """The hub must not start like this; the message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = 8787
    listen_fds: str = ""
    """Descriptors of open sockets to listen on, in place of host and port, as in `3 4`: `serve
    --nodes` hands them to its nodes.
    """
    data: Path = Path(".machinehub")
    database_url: str = ""
    """SQLAlchemy URL; empty for SQLite in the data folder."""
    nats_url: str = ""
    """Where NATS is, as in `nats://hub:secret@nats.internal:4222`, or several parted by commas: the
    hub is one of several then that share a Postgres database. Empty for a hub of its own.
    """
    nats_credentials: str = ""
    """A file of credentials for NATS (`.creds`); empty for what the URL says."""
    nats_ca: str = ""
    """The certificate (PEM) that NATS' own is signed by; empty for those that the system trusts."""
    token: str = ""
    """A token that may do everything, besides those in the database."""
    workers: int = 0
    """Sandbox workers; 0 for one per core, at least two."""
    public_url: str = ""
    """What URLs in answers begin with; empty for the address that the hub listens on."""
    cache: Path = field(default_factory=cache_folder)
    """Where compiled modules are kept.

    Workers run in a folder of their own, so the path must be absolute.
    """
    keep_checkpoints: int = 3
    """The newest checkpoints of a session that are kept."""
    keep_checkpoint_every: int = 1_000
    """Besides, one checkpoint for every so many inputs; 0 for none."""
    keep_journal: int = 0
    """Inputs of a session whose journal is kept; 0 for all."""
    expire_finished_s: int = 0
    """Sessions that finished so many seconds ago are deleted; 0 for never."""
    origins: str = ""
    """Sites whose pages may use machines, as in `https://example.org https://example.com`; empty
    for all.
    """
    trusted_proxies: str = "127.0.0.1, ::1"
    """Addresses and networks of the proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are
    believed, as in `10.0.0.0/8, ::1`. All clients of any other proxy count as one address: its own.
    """
    egress_networks: str = ""
    """Networks besides the public internet that the hub itself may make requests to, as in
    `10.1.0.0/16`; empty for none.
    """
    egress_ca: str = ""
    """A file of certificates (PEM) that are believed besides the usual ones."""
    egress_allow: str = "*"
    """Hosts that machines may send requests to, as in their own `[egress] allow`, parted by spaces
    or commas: the bound of all projects. Empty for none.
    """
    secrets_key: str = ""
    """Keys that the secrets of projects are sealed with, 32 bytes each in base64, parted by commas;
    the first seals, all open.
    """
    secrets_key_file: str = ""
    """The same in a file, one a line; without either it is `secrets.key` in the data folder, which
    the hub makes when it is needed (not where several share a database).
    """
    egress_mock: str = ""
    """A file that answers requests of machines, in place of the world (`dev --mock`)."""
    audit_days: int = 365
    """How long it is kept who did what, in days; 0 for ever."""
    drain_s: int = 0
    """How long a hub that was told to stop is not ready but still serves, in seconds: so long a
    balancer may take to notice.
    """
    backup_before_upgrade: bool = True
    """Whether a SQLite database is copied before its schema is changed."""
    fuel: bool = False
    """Whether wasmtime's fuel is counted for every turn: the same work costs the same everywhere,
    and a fifth more CPU.
    """
    isolate_machines: bool = False
    """Whether the sessions of each machine have a worker process of their own, which they share
    with no other machine.
    """
    limits: Limits = field(default_factory=Limits)

    @property
    def is_loopback(self) -> bool:
        return self.host == "localhost" or _is_loopback_address(self.host)

    @property
    def base_url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.public_url.rstrip("/") or f"http://{host}:{self.port}"

    @property
    def base_path(self) -> str:
        """The path of the public URL, as in `/hub`; empty where it has none."""
        return urlsplit(self.base_url).path.rstrip("/")

    @property
    def proxies(self) -> list[str]:
        return self.trusted_proxies.replace(",", " ").split()

    @property
    def egress_allowed(self) -> list[str]:
        return self.egress_networks.replace(",", " ").split()

    @property
    def egress_hosts(self) -> list[str]:
        return self.egress_allow.replace(",", " ").split()

    @property
    def worker_count(self) -> int:
        return self.workers or max(2, capacity.cores())

    @property
    def resident_bytes(self) -> int:
        """What session workers may touch together; 0 when the computer does not say what it has."""
        return self.limits.resident_bytes or capacity.memory_bytes() * 2 // 3

    @property
    def retention(self) -> Retention:
        return Retention(
            checkpoints=self.keep_checkpoints,
            checkpoint_every=self.keep_checkpoint_every,
            journal=self.keep_journal,
        )

    @property
    def sqlalchemy_url(self) -> str:
        return (
            normalise_database_url(self.database_url)
            if self.database_url
            else f"sqlite+aiosqlite:///{quote(str(self.data / 'hub.db'))}"
        )


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("0", "1", "false", "true", "no", "yes", "off", "on"):
        raise ValueError(text)
    return text.lower() in ("1", "true", "yes", "on")


_VARIABLES: Final[tuple[tuple[str, Callable[[str], object]], ...]] = (
    ("host", str),
    ("port", int),
    ("listen_fds", str),
    ("data", Path),
    ("database_url", str),
    ("nats_url", str),
    ("nats_credentials", str),
    ("nats_ca", str),
    ("token", str),
    ("workers", int),
    ("public_url", str),
    ("origins", str),
    ("trusted_proxies", str),
    ("egress_networks", str),
    ("egress_allow", str),
    ("egress_ca", str),
    ("egress_mock", str),
    ("secrets_key", str),
    ("secrets_key_file", str),
    ("audit_days", int),
    ("drain_s", int),
    ("backup_before_upgrade", _yes_or_no),
    ("fuel", _yes_or_no),
    ("isolate_machines", _yes_or_no),
    *((name, int) for name in KEEPING),
)
"""What the environment may say besides limits, and how it is read."""


def from_environment(environment: Mapping[str, str], **chosen: object) -> Settings:
    """Settings from `MACHINEHUB_*` variables, with what the command line chose on top.

    Raises `BadSettings`.
    """
    values: dict[str, object] = {}
    for name, convert in _VARIABLES:
        text = environment.get(PREFIX + name.upper())
        if text and not (name == "port" and text.startswith("tcp://")):
            values[name] = _convert(PREFIX + name.upper(), text, convert)
    limits = {
        name: _convert(LIMIT_PREFIX + name.upper(), text, int)
        for name in Limits.__struct_fields__
        if (text := environment.get(LIMIT_PREFIX + name.upper()))
    }
    for name, value in limits.items():
        if not 1 <= int(str(value)) <= 2**40:
            raise BadSettings(f"{LIMIT_PREFIX}{name.upper()}: {value} is not a limit")
    _check_names(environment)
    values |= {key: value for key, value in chosen.items() if value is not None}
    for name, lowest, highest in (
        ("port", 1, 65535),
        ("workers", 0, 256),
        ("drain_s", 0, 3600),
        ("audit_days", 0, 36500),
        ("keep_checkpoints", 1, 1000),
        *((name, 0, 2**31) for name in KEEPING[1:]),
    ):
        if name in values and not lowest <= int(str(values[name])) <= highest:
            raise BadSettings(
                f"{PREFIX}{name.upper()}: {values[name]} is not between {lowest} and {highest}"
            )
    _public_host(str(values.get("public_url", "")))
    _check_origins(str(values.get("origins", "")))
    for name in ("trusted_proxies", "egress_networks"):
        _check_networks(name, str(values.get(name, "")))
    _check_cluster(values)
    _check_files(values, "egress_ca", "egress_mock", "secrets_key_file")
    if values.get("database_url"):
        normalise_database_url(str(values["database_url"]))
    return Settings(**values, limits=Limits(**limits))  # type: ignore[arg-type]


def _check_cluster(values: Mapping[str, object]) -> None:
    """Raises `BadSettings` for a hub that cannot be one of several."""
    descriptors = str(values.get("listen_fds", "0"))
    if not descriptors.replace(" ", "").isdecimal():
        raise BadSettings(f"{PREFIX}LISTEN_FDS: {descriptors!r} are no descriptors")
    if not values.get("nats_url"):
        return
    if not str(values.get("database_url", "")).startswith("postgres"):
        raise BadSettings(
            f"{PREFIX}NATS_URL is for hubs that share a Postgres database: set "
            f"{PREFIX}DATABASE_URL=postgresql://... as well (a SQLite database is one hub's)"
        )
    for each in str(values["nats_url"]).split(","):
        if urlsplit(each.strip()).scheme not in ("nats", "tls", "ws", "wss"):
            raise BadSettings(f"{PREFIX}NATS_URL: not a URL as in nats://127.0.0.1:4222")
    _check_files(values, "nats_credentials", "nats_ca")


def _check_files(values: Mapping[str, object], *names: str) -> None:
    """Raises `BadSettings` for those that are not there."""
    for name in names:
        if values.get(name) and not Path(str(values[name])).is_file():
            raise BadSettings(f"{PREFIX}{name.upper()}: there is no file {values[name]}")


def _check_names(environment: Mapping[str, str]) -> None:
    """Raises `BadSettings` for variables that mean nothing: a setting that is misspelled would not
    be noticed before it is missed.
    """
    known = {PREFIX + name.upper() for name in Settings.__dataclass_fields__} | {
        PREFIX + name for name in OTHERS
    }
    limits = {LIMIT_PREFIX + name.upper() for name in Limits.__struct_fields__}
    known = (known - {LIMIT_PREFIX[:-1] + "S"}) | limits
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known and not _ORCHESTRATORS.fullmatch(name):
            near = difflib.get_close_matches(name, known, 1)
            what = "no such limit" if name.startswith(LIMIT_PREFIX) else "there is no such setting"
            raise BadSettings(f"{name}: {what}" + (f"; is it {near[0]}?" if near else ""))


def is_origin(text: str) -> bool:
    """Whether a browser would send this as `Origin` (RFC 6454, section 7)."""
    try:
        parts = urlsplit(text)
        is_one = bool(
            parts.hostname and parts.port != 0 and text == f"{parts.scheme}://{parts.netloc}"
        )
    except ValueError:
        return False
    is_plain = text.isascii() and text.isprintable() and not {"@", " "} & set(text)
    return is_one and is_plain and text == text.lower()


def _check_origins(origins: str) -> None:
    """Raises `BadSettings` for what no browser would send as `Origin`."""
    for origin in origins.replace(",", " ").split():
        if not is_origin(origin):
            raise BadSettings(
                f"{PREFIX}ORIGINS: {origin!r} is not an origin as in https://app.example "
                "(lower case, no path)"
            )


def _check_networks(name: str, networks: str) -> None:
    for network in networks.replace(",", " ").split():
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise BadSettings(
                f"{PREFIX}{name.upper()}: {error}; write addresses and networks, as in 10.0.0.0/8"
            ) from None


def check_can_listen(settings: Settings, *, has_tokens: bool) -> None:
    """Raises `BadSettings` for an address that strangers reach while anybody may deploy."""
    if settings.token or has_tokens:
        return
    public = _public_host(settings.public_url)
    if not settings.is_loopback:
        where = f"listen on {settings.host}"
    elif public is not None and public != "localhost" and not _is_loopback_address(public):
        where = f"be {settings.public_url}"
    else:
        return
    raise BadSettings(
        f"refusing to {where} without a token: anybody who reaches it could deploy. "
        f"Set {PREFIX}TOKEN, or run `machinehub tokens create`."
    )


_PLAIN_PATH: Final = re.compile("(/[A-Za-z0-9._-]+)*/?")
"""What proxies and browsers spell in one way only."""


def _public_host(url: str) -> str | None:
    """The host of a public URL; None where there is none. Raises `BadSettings`."""
    if not url:
        return None
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:  # "http://[", or a port that is no number
        host = None
    if host is None or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise BadSettings(f"{PREFIX}PUBLIC_URL: {url!r} is not a URL as in https://hub.example")
    if not _PLAIN_PATH.fullmatch(parts.path):
        raise BadSettings(
            f"{PREFIX}PUBLIC_URL: the path {parts.path!r} has other characters than letters, "
            "digits, dots, dashes and underscores"
        )
    return host


def normalise_database_url(url: str) -> str:
    """The async driver's URL for what people write: postgres://, postgresql://, sqlite://."""
    if url.startswith("sqlite") and url.partition(":///")[2] in ("", ":memory:"):
        raise BadSettings(f"{PREFIX}DATABASE_URL: {url!r} names no file, as sqlite:///hub.db does")
    for plain, driver in (
        ("postgres://", "postgresql+asyncpg://"),
        ("postgresql://", "postgresql+asyncpg://"),
        ("sqlite://", "sqlite+aiosqlite://"),
    ):
        if url.startswith(plain):
            return driver + url.removeprefix(plain)
    if not url.startswith(("postgresql+asyncpg://", "sqlite+aiosqlite://")):
        raise BadSettings(
            f"{PREFIX}DATABASE_URL: {url.split(':', maxsplit=1)[0]!r} is not a database this hub "
            "knows (sqlite, postgresql)"
        )
    return url


def _convert(name: str, text: str, convert: object) -> object:
    try:
        return convert(text)  # type: ignore[operator]
    except ValueError:
        raise BadSettings(
            f"{name}: {text!r} is not {'yes or no' if convert is _yes_or_no else 'a number'}"
        ) from None


def _is_loopback_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
