"""Who may come in: by which name, from which page, how many at once, and how often.

Decides before anything of a request is looked at closer. Counts are kept by address (of the proxy's
client, where a proxy on this computer names one; an IPv6 network of 64 bits counts as one) and by
machine. On an open hub, which only this computer reaches, nothing is counted: a developer's own
load test is no abuse.
"""

from __future__ import annotations

import re
import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from machinehub.errors import Forbidden, RateLimited
from machinehub.rates import Rate

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from machinehub.limits import Limits
    from machinehub.session.live import LiveSession
    from machinehub.settings import Settings

PROXIES: Final = frozenset({"127.0.0.1", "::1"})
"""From where `X-Forwarded-For` is believed, as uvicorn does."""
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/@]+))(?::[0-9]*)?")
REMEMBERED: Final = 10_000
"""Addresses and machines whose rates are remembered. Who is forgotten starts afresh."""


class Door:
    def __init__(self, settings: Settings, limits: Limits, *, is_open: Callable[[], bool]) -> None:
        self._names = LOOPBACK_NAMES | {settings.host, urlsplit(settings.base_url).hostname or ""}
        self._origins = frozenset(settings.origins.replace(",", " ").split())
        self._limits = limits
        self._is_open = is_open
        self._connected: Counter[str] = Counter()
        self._inside: Counter[str] = Counter()
        self._requests: OrderedDict[str, Rate] = OrderedDict()
        self._events: OrderedDict[str, Rate] = OrderedDict()

    @property
    def counts(self) -> bool:
        """Whether rates and connections are counted."""
        return not self._is_open()

    def check_names(self, headers: list[tuple[bytes, bytes]]) -> None:
        """`Host` and `Origin`. Raises `Forbidden`.

        A page of another site may not reach an open hub under a name that its own server points
        here (DNS rebinding). Machines are for pages of any site, unless the hub's settings name
        those that may use them.
        """
        host = origin = ""
        for name, value in headers:
            if name == b"host":
                host = value.decode("latin-1")
            elif name == b"origin":
                origin = value.decode("latin-1")
        if self._is_open() and _hostname(host) not in self._names:
            raise Forbidden(
                "foreign_host",
                "an open hub answers to localhost only; configure a token, or MACHINEHUB_PUBLIC_URL, to use other names",
            )
        if origin and self._origins and origin not in self._origins and site_of(origin) != host:
            raise Forbidden("foreign_origin", "this hub's machines are for other sites' pages")

    def connect(self, peer: str) -> Callable[[], None] | None:
        """A connection is there, whatever comes of it; what to call when it is gone.

        Those of a proxy on this computer are counted by request. Raises `RateLimited`.
        """
        if not self.counts or peer in PROXIES:
            return None
        address = _network(peer)
        if self._connected[address] >= self._limits.connections_per_address:
            raise RateLimited(
                "connections_exceeded",
                f"an address has at most {self._limits.connections_per_address} connections at once",
            )
        self._connected[address] += 1

        def leave() -> None:
            self._connected[address] -= 1
            if not self._connected[address]:
                del self._connected[address]

        return leave

    def enter(self, scope: MutableMapping[str, Any]) -> str | None:
        """A request or connection begins; the address to `leave` with. Raises `RateLimited`."""
        if not self.counts:
            return None
        address = _network(scope["client"][0] if scope.get("client") else "")
        if self._inside[address] >= self._limits.connections_per_address:
            raise RateLimited(
                "connections_exceeded",
                f"an address has at most {self._limits.connections_per_address} connections and requests at once",
            )
        if not _rate(self._requests, address, self._limits.requests_per_s).take(
            1, time.monotonic()
        ):
            raise RateLimited(
                "rate_limited",
                f"an address makes at most {self._limits.requests_per_s} requests a second",
            )
        self._inside[address] += 1
        return address

    def leave(self, address: str | None) -> None:
        if address is not None:
            self._inside[address] -= 1
            if not self._inside[address]:
                del self._inside[address]

    def take_event(self, session: LiveSession) -> None:
        """An event for one of a machine's sessions. A version's own rate is its sessions' alone.

        Raises `RateLimited`.
        """
        if not self.counts:
            return
        per_s = session.allowed.machine_events_per_s
        own = per_s < self._limits.machine_events_per_s
        name = f"{session.machine_id}@{session.record.version}" if own else session.machine_id
        if not _rate(self._events, name, per_s).take(1, time.monotonic()):
            raise RateLimited("rate_limited", f"a machine takes at most {per_s} events a second")


def _rate(rates: OrderedDict[str, Rate], name: str, per_s: int) -> Rate:
    rate = rates.get(name)
    if rate is None:
        rate = rates[name] = Rate(per_s)
        if len(rates) > REMEMBERED:
            rates.popitem(last=False)
    else:
        rates.move_to_end(name)
    return rate


def site_of(origin: str) -> str | None:
    """Host and port of an `Origin`; None for what names none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:  # "http://["
        return None


def _hostname(host: str) -> str | None:
    """The name in a `Host` header, without its port (RFC 9110, 7.2)."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else None


def _network(address: str) -> str:
    """IPv6 by its first four groups: whoever has one such address has the whole network."""
    if ":" not in address:
        return address
    if "." in address:  # an IPv4 address, spelled as one of the others
        return address.rsplit(":", 1)[1]
    head, _, tail = address.partition("::")
    groups = head.split(":") if head else []
    if tail or "::" in address:
        rest = tail.split(":") if tail else []
        groups += ["0"] * (8 - len(groups) - len(rest)) + rest
    return ":".join(groups[:4])
