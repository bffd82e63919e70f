"""Requests that the hub itself makes, to addresses that somebody else chose.

Where a name leads is looked up once, each address is checked, and the connection goes to the
address that was checked: a name that leads elsewhere the next moment (DNS rebinding) gains nothing.
Only addresses of the public internet are let through, and networks that the operator names
(`MACHINEHUB_EGRESS_NETWORKS`). Redirects are not followed. What comes back is bounded while it
comes.
"""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import httpx

from machinehub.errors import HubError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from machinehub.settings import Settings

NAT64: Final = ip_network("64:ff9b::/96")
"""RFC 6052: the last 32 bits are an IPv4 address, which may be any."""


DOCUMENTATION: Final = ip_network("3fff::/20")
"""RFC 9637, which Python does not know yet."""


class EgressError(HubError):
    """The request was not made, or nothing that could be used came back."""

    status, title = 502, "Cannot be fetched"


class Egress:
    def __init__(self, settings: Settings) -> None:
        self._networks = [ip_network(each) for each in settings.egress_allowed]
        self._ssl: ssl.SSLContext | None = None

    async def get(self, url: str, *, bytes_max: int, within_s: float) -> bytes:
        """The body of a 200 answer. Raises `EgressError`."""
        try:
            async with asyncio.timeout(within_s):
                return await self._get(url, bytes_max)
        except TimeoutError:
            raise EgressError("egress_failed", f"no answer within {within_s:.0f} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            what = type(error).__name__
            raise EgressError("egress_failed", f"the request failed: {what}") from None

    async def _get(self, url: str, bytes_max: int) -> bytes:
        host, port, scheme = read_target(url)
        address = await self._address_of(host, port)
        if scheme == "http" and not self._is_named(address):
            raise EgressError("egress_refused", "only https leaves the hub")
        shown = f"[{address}]" if address.version == 6 else str(address)
        pinned = httpx.URL(url).copy_with(host=str(address), port=port)
        async with (
            httpx.AsyncClient(verify=self._context(), trust_env=False) as client,
            client.stream(
                "GET",
                pinned,
                headers={"Host": httpx.URL(url).netloc.decode(), "Accept-Encoding": "identity"},
                # The certificate is checked for the name, not for the address.
                extensions={"sni_hostname": host},
            ) as answer,
        ):
            if answer.status_code != 200:
                raise EgressError("egress_failed", f"the answer is {answer.status_code}")
            body = bytearray()
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise EgressError("egress_failed", "the answer is compressed, which was not asked")
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > bytes_max:
                    raise EgressError(
                        "egress_failed", f"{shown} answers more than {bytes_max} bytes"
                    )
            return bytes(body)

    def _context(self) -> ssl.SSLContext:
        if self._ssl is None:
            self._ssl = httpx.create_ssl_context()
        return self._ssl

    async def _address_of(self, host: str, port: int) -> IPv4Address | IPv6Address:
        """The first address of a host; all of them must be allowed."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [ip_address(each[4][0]) for each in found]
        for address in addresses:
            if not (self._is_named(address) or is_public(address)):
                raise EgressError("egress_refused", "the host is not on the public internet")
        return addresses[0]

    def _is_named(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)


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
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise EgressError("egress_refused", "a URL with a user or a password is not fetched")
    return host, port or (443 if parts.scheme == "https" else 80), parts.scheme


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is an address of the public internet, also behind those of IPv6 that carry one of
    IPv4 (mapped, 6to4, Teredo, NAT64).
    """
    if not address.is_global or address.is_multicast or address.is_reserved:
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
