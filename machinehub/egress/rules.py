"""What a machine may ask the world for: the table `[egress]` of machinehub.toml.

Decides without I/O.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from machinehub.egress.addresses import EgressError, read_target
from machinehub.errors import BadRequest

ALLOWED_MAX: Final = 100
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
"""RFC 9110, section 9.2.2, of those that `fetch` sends."""
_HOST: Final = re.compile(
    r"(?:\*|(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]{2,45}\])"
    r"(?::([0-9]{1,5}))?"
)
_CLIMBS: Final = re.compile(
    r"(?:^|/|\\|%(?:25)*2f|%(?:25)*5c)(?:\.|%(?:25)*2e){1,2}"
    r"(?:/|\\|;|[\x00-\x20]|%(?:25)*(?:2f|5c|3b|[01][0-9a-f]|20)|$)",
    re.IGNORECASE,
)
"""A segment of a path that some server takes for `.` or `..`, however it is spelled."""
_Count = Annotated[int, msgspec.Meta(ge=1, le=1_000)]
Allowed = Annotated[
    list[Annotated[str, msgspec.Meta(max_length=500)]], msgspec.Meta(max_length=ALLOWED_MAX)
]


class EgressRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The table `[egress]`."""

    allow: Allowed = []
    """`api.example.com`, `*.example.com` (what is below it), `*` (everything), each with a port if
    no other will do, or `https://hooks.example.com/x/*`: a scheme, a host and the beginning of a
    path.
    """
    methods: (
        Annotated[
            list[Annotated[str, msgspec.Meta(pattern="^[A-Z]{1,20}$")]],
            msgspec.Meta(max_length=20),
        ]
        | None
    ) = None
    """None for all."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=300)] = 30
    """Of one try as a whole, redirects included."""
    response_bytes: Annotated[int, msgspec.Meta(ge=0, le=512 * 1024)] = 256 * 1024
    """Of an answer's body, unpacked. The answer is an input, for which a guest has 1 MiB."""
    redirects: Annotated[int, msgspec.Meta(ge=0, le=20)] = 5
    per_second: _Count = 10
    """Of all sessions of the version together; what is over waits."""
    in_flight: _Count = 20
    """The same, at once."""
    tries: Annotated[int, msgspec.Meta(ge=1, le=20)] = 5
    within_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60
    """So many tries within this time, from the first on."""


class Target(NamedTuple):
    """Where a request goes."""

    scheme: str
    host: str
    """In lower case, without brackets."""
    port: int
    path: str


def target_of(url: str) -> Target:
    """Raises `EgressError`."""
    host, port, scheme = read_target(url)
    return Target(scheme, host.rstrip("."), port, urlsplit(url).path or "/")


def check_egress(rules: EgressRules) -> None:
    """Raises `BadRequest` for what cannot be a rule."""
    check_allowed(rules.allow)


def check_allowed(allowed: list[str]) -> None:
    """Raises `BadRequest`."""
    for pattern in allowed:
        _, _, rest = pattern.rpartition("://")
        host, slash, path = rest.partition("/")
        scheme = pattern[: -len(rest) - 3] if rest != pattern else ""
        found = _HOST.fullmatch(host)
        sound = scheme in ("", "http", "https") and found and int(found[1] or 1) <= 65535
        if not sound or (slash and not scheme) or "*" in path[:-1] or "?" in path:
            raise BadRequest(
                "invalid_egress",
                f"{pattern!r}: an egress rule is a host, *.host, or https://host/path/*",
            )


def is_allowed(allowed: list[str], target: Target) -> bool:
    return any(_fits(pattern, target) for pattern in allowed)


def check_request(rules: EgressRules, bounds: list[list[str]], method: str, target: Target) -> None:
    """Whether a machine may send this. `bounds` are what its project and its hub let out. Raises
    `EgressError`.
    """
    if not is_allowed(rules.allow, target):
        raise EgressError(
            "egress_refused", f"{target.host} is not allowed by this machine's egress rules"
        )
    if not all(is_allowed(bound, target) for bound in bounds):
        raise EgressError("egress_refused", f"{target.host} is not allowed here")
    if rules.methods is not None and method not in rules.methods:
        raise EgressError(
            "egress_refused", f"{method} is not allowed by this machine's egress rules"
        )


def _fits(pattern: str, target: Target) -> bool:
    scheme, parted, rest = pattern.rpartition("://")
    if parted and scheme != target.scheme:
        return False
    host, slash, path = rest.partition("/")
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    if found[1] is not None:
        if int(found[1]) != target.port:
            return False
        host = host[: -len(found[1]) - 1]
    elif parted and target.port != {"http": 80, "https": 443}[target.scheme]:
        return False
    if not host_fits(host, target.host):
        return False
    wanted = "/" + path
    if not slash or not parted:
        return True
    if _CLIMBS.search(target.path):
        return False  # what a server makes of it is not what stands there
    return target.path.startswith(wanted[:-1]) if path.endswith("*") else target.path == wanted


def host_fits(pattern: str, host: str) -> bool:
    """Whether `*`, `*.example.com` or `example.com` describes a host."""
    pattern = pattern.lower().strip("[]").rstrip(".")
    if pattern == "*":
        return True
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return host == pattern
