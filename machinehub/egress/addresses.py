"""Which addresses the hub may make requests to, where somebody else chose them.

Only addresses of the public internet are let through, and networks that the operator names
(`MACHINEHUB_EGRESS_NETWORKS`).
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from machinehub.errors import HubError

if TYPE_CHECKING:
    from collections.abc import Iterable

NAT64: Final = ip_network("64:ff9b::/96")
"""RFC 6052: the last 32 bits are an IPv4 address, which may be any."""


DOCUMENTATION: Final = ip_network("3fff::/20")
"""RFC 9637, which Python does not know yet."""


NEVER: Final = tuple(
    ip_network(each) for each in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
)
"""Public by the book, and yet of the network that the hub is in: what RFC 6890 keeps for protocols
(a cloud has its metadata there), relays of 6to4 (RFC 7526), and the host of virtual machines at
another cloud.
"""


_NO_HOST: Final = re.compile(r"""[\s%\\<>^`{|}"'(),;]""")
HOST_CHARS_MAX: Final = 253
"""RFC 1035, section 2.3.4, as text."""


class EgressError(HubError):
    """The request was not made, or nothing that could be used came back."""

    status, title = 502, "Cannot be fetched"
    is_passing = False
    """Whether the same request may succeed a little later."""


class Unreachable(EgressError):
    """Nobody answered, or not to the end."""

    is_passing = True


class Networks:
    """Which addresses are let through: those in networks that the operator named, and, if they are
    `public`, those of the internet.
    """

    def __init__(self, named: Iterable[str], *, public: bool = True) -> None:
        self._public = public
        self._named = [ip_network(each) for each in named]

    def is_named(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._named)

    def check(self, address: IPv4Address | IPv6Address) -> None:
        """Raises `EgressError`."""
        if self.is_named(address):
            return
        if not is_public(address):
            raise EgressError("egress_refused", "the host is not on the public internet")
        if not self._public:
            raise EgressError("egress_refused", "only https leaves the hub")


def read_target(url: str) -> tuple[str, int, str]:
    """Host, port and scheme of a URL that the hub may be asked to fetch. Raises `EgressError`."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not host or not url.isprintable():
        raise EgressError("egress_refused", "only URLs of http and https can be fetched")
    if _NO_HOST.search(host):
        raise EgressError("egress_refused", "the host of the URL cannot be one")
    if len(host) > HOST_CHARS_MAX:
        raise EgressError("egress_refused", f"a host has at most {HOST_CHARS_MAX} characters")
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise EgressError("egress_refused", "a URL with a user or a password is not fetched")
    return host, port or (443 if parts.scheme == "https" else 80), parts.scheme


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is an address of the public internet, also behind those of IPv6 that carry one of
    IPv4 (mapped, 6to4, Teredo, NAT64).
    """
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if any(address in network for network in NEVER):
        return False
    if isinstance(address, IPv6Address) and (
        address.is_site_local or address in DOCUMENTATION or _is_isatap(address)
    ):
        return False
    return all(is_public(each) for each in _carried(address))


def _is_isatap(address: IPv6Address) -> bool:
    """RFC 5214, section 6.1: the interface is 0000:5efe or 0200:5efe, and an IPv4 address."""
    return (int(address) >> 32) & 0xFDFFFFFF == 0x5EFE


def _carried(address: IPv4Address | IPv6Address) -> Iterable[IPv4Address]:
    if isinstance(address, IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if address in NAT64:
        yield IPv4Address(int(address) & 0xFFFFFFFF)
