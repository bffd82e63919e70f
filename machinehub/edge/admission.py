"""Admission: every request and every socket passes here, and comes out as a `Principal`.

In one order: names (`Host`, proxies), origins, how many and how often, identity. How large a body
may be depends on what is asked, and is refused where it is read (`requests.read_body`). Counts are
kept by address (of the proxy's client, where a trusted proxy names one; an IPv6 network of 64 bits
counts as one). On an open hub, which only this computer reaches, nothing is counted: a
developer's own load test is no abuse.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from machinehub.edge.identity import shown_in
from machinehub.edge.peers import is_mine
from machinehub.errors import BadRequest, Forbidden, RateLimited
from machinehub.principal import Principal, Standing
from machinehub.rates import Rates

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from machinehub.clock import Clock
    from machinehub.edge.identity import Identities
    from machinehub.edge.peers import Address
    from machinehub.edge.tokens import Tokens
    from machinehub.limits import Limits
    from machinehub.settings import Settings

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
ASSETS: Final = "/assets/"
WRONG_TOKENS_PER_S: Final = 0.5
WRONG_TOKENS_AT_ONCE: Final = 20
"""How often an address may show a token that is not valid."""
PRINCIPAL: Final = "machinehub.principal"
"""Where the ASGI scope carries the `Principal`."""
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/@]+))(?::[0-9]*)?")


class _Headers:
    """What admission looks at of a request's head."""

    __slots__ = ("forwarded", "host", "mode", "origin", "site")

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.host = self.origin = self.site = self.mode = ""
        self.forwarded = False
        for name, value in headers:
            match name:
                case b"host":
                    if self.host:  # RFC 9112, section 3.2
                        raise BadRequest("bad_request", "a request has one Host header")
                    self.host = value.decode("latin-1")
                case b"origin":
                    self.origin = value.decode("latin-1")
                case b"sec-fetch-site":
                    self.site = value.decode("latin-1")
                case b"sec-fetch-mode":
                    self.mode = value.decode("latin-1")
                case b"forwarded" | b"via":
                    self.forwarded = True
                case _ if name.startswith(b"x-forwarded-"):
                    self.forwarded = True


class Admission:
    def __init__(
        self,
        settings: Settings,
        limits: Limits,
        tokens: Tokens,
        identities: Identities,
        clock: Clock,
    ) -> None:
        self._names = LOOPBACK_NAMES | {settings.host}
        self._proxies = [ip_network(proxy) for proxy in settings.proxies]
        self._is_proxy = functools.lru_cache(maxsize=4096)(self._look_up_proxy)
        self._origins = frozenset(settings.origins.replace(",", " ").split())
        self._limits = limits
        self._tokens = tokens
        self._identities = identities
        self._clock = clock
        self._connected: Counter[str] = Counter()
        self._inside: Counter[str] = Counter()
        self._requests: Rates[str] = Rates()
        self._wrong: Rates[str] = Rates()

    @property
    def is_open(self) -> bool:
        """Whether everybody on this computer may do everything."""
        return self._tokens.is_open

    def connect(
        self, peer: Address | None, ours: Address | None = None
    ) -> Callable[[], None] | None:
        """Counts a new TCP connection from `peer` to our address `ours`. Returns a function that
        the caller has to call when the connection closes, or None if it is not counted: on an open
        hub, and for a trusted proxy, whose clients are counted by `enter`. Raises `RateLimited`,
        and `Forbidden` where the hub is open and another user's process connects.
        """
        if peer is None:
            return None
        if self.is_open:
            if ours is not None and not is_mine(peer, ours):
                raise Forbidden(
                    "foreign_host",
                    "an open hub is for the user who started it: another user's process connects, "
                    "as a proxy does; configure a token (`machinehub tokens create`)",
                )
            return None
        if self._is_proxy(peer[0]):
            return None
        address = network_of(peer[0])
        self._count(self._connected, address, "connections")
        return lambda: self._uncount(self._connected, address)

    async def enter(self, scope: MutableMapping[str, Any]) -> Callable[[], None]:
        """A request or a socket begins: `scope` carries its principal from now on. What to call
        when it ends. Raises `Forbidden`, `RateLimited`.
        """
        await self._tokens.look()
        head = _Headers(scope["headers"])
        self._check_names(head, scope["http_version"])
        self._check_origin(head, scope["path"])
        address = network_of(scope["client"][0] if scope.get("client") else "")
        if not self.is_open:
            self._check_rate(address)
        found = await self.identify(scope, shown_in(scope["headers"], scope["query_string"]))
        scope[PRINCIPAL] = found or self._nobody(head)
        if self.is_open:
            return lambda: None
        self._count(self._inside, address, "connections and requests")
        return lambda: self._uncount(self._inside, address)

    def _look_up_proxy(self, peer: str) -> bool:
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._proxies)

    # --- names and origins ------------------------------------------------------------------------

    def _check_names(self, head: _Headers, http_version: str) -> None:
        """An open hub is for this computer alone: neither a page whose server points a name of its
        own here (DNS rebinding) nor whoever comes through a proxy is let in. A proxy that adds no
        header of its own, and calls the hub by its address, is known by HTTP/1.0: nginx's default.
        """
        if not self.is_open:
            return
        if head.forwarded or http_version == "1.0":
            raise Forbidden(
                "foreign_host",
                (
                    "an open hub is not for a proxy's clients; configure a token (`machinehub "
                    "tokens create`)"
                ),
            )
        if _hostname(head.host) not in self._names:
            raise Forbidden(
                "foreign_host",
                "an open hub answers to localhost only; configure a token (`machinehub tokens "
                "create`)"
                " to use other names",
            )

    def _check_origin(self, head: _Headers, path: str) -> None:
        """Raises `Forbidden` for a request by a web page whose origin may not use this hub.

        Origins that the settings list are allowed. If they list none, a hub with tokens allows
        every origin, and an open hub only loopback origins and no embedding by other sites. The
        hub's own origin is always allowed.
        """
        if path.startswith(ASSETS):
            return
        if not head.origin:
            # A picture or a script of another site's page is asked for without an Origin.
            embedded = head.site == "cross-site" and head.mode != "navigate"
            if self.is_open and embedded and not self._origins:
                raise Forbidden("foreign_origin", "an open hub is not for other sites' pages")
            return
        if site_of(head.origin) == head.host:
            return
        if self._origins:
            if head.origin not in self._origins:
                raise Forbidden("foreign_origin", "this hub's machines are for other sites' pages")
        elif self.is_open and not _is_loopback_origin(head.origin):
            raise Forbidden(
                "foreign_origin",
                "an open hub is for pages of this computer; name the site in MACHINEHUB_ORIGINS",
            )

    # --- how many, how often ----------------------------------------------------------------------

    def _check_rate(self, address: str) -> None:
        per_s = self._limits.requests_per_s
        if not self._requests.take(address, per_s, self._clock.monotonic_s()):
            raise RateLimited("rate_limited", f"an address makes at most {per_s} requests a second")

    def _count(self, counter: Counter[str], address: str, what: str) -> None:
        most = self._limits.connections_per_address
        if counter[address] >= most:
            raise RateLimited(
                "connections_exceeded", f"an address has at most {most} {what} at once"
            )
        counter[address] += 1

    def _uncount(self, counter: Counter[str], address: str) -> None:
        counter[address] -= 1
        if not counter[address]:
            del counter[address]

    # --- identity ---------------------------------------------------------------------------------

    async def identify(self, scope: MutableMapping[str, Any], shown: list[str]) -> Principal | None:
        """Who shows these tokens and keys, of a request or a socket; None for who shows nothing
        that could mean something. Raises `Forbidden`, `RateLimited`, `Unavailable`.
        """
        if not shown:
            return None
        head = _Headers(scope["headers"])
        found = await self._identities.find(shown, origin="" if _is_own(head) else head.origin)
        if found is not None and found.standing is Standing.WRONG_TOKEN:
            address = network_of(scope["client"][0] if scope.get("client") else "")
            now_s = self._clock.monotonic_s()
            if not self._wrong.take(address, WRONG_TOKENS_PER_S, now_s, burst=WRONG_TOKENS_AT_ONCE):
                raise RateLimited("rate_limited", "too many wrong tokens; try again in a while")
        return found

    def _nobody(self, head: _Headers) -> Principal:
        """Who shows nothing."""
        if self.is_open:
            return Principal(Standing.LOCAL if _is_own(head) else Standing.FOREIGN_PAGE)
        return Principal(Standing.ANONYMOUS)


def _is_own(head: _Headers) -> bool:
    """Whether no page asks, or the hub's own."""
    return not head.origin or site_of(head.origin) == head.host


def principal_of(scope: MutableMapping[str, Any]) -> Principal:
    """Whom admission found behind a request or a socket."""
    principal = scope[PRINCIPAL]
    assert isinstance(principal, Principal)
    return principal


def site_of(origin: str) -> str | None:
    """Host and port of an `Origin`; None for what names none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:  # "http://["
        return None


def _is_loopback_origin(origin: str) -> bool:
    try:
        return urlsplit(origin).hostname in LOOPBACK_NAMES
    except ValueError:
        return False


def _hostname(host: str) -> str | None:
    """The name in a `Host` header, without its port (RFC 9110, 7.2)."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else None


def network_of(address: str) -> str:
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
