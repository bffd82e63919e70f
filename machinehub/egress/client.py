"""Requests that the hub makes to addresses that somebody else chose: bounded in time and size,
checked anew at each redirect.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import httpcore
import httpx

from machinehub.egress.addresses import EgressError, Networks, Unreachable
from machinehub.egress.connections import CheckedTransport, Lookups, Names
from machinehub.egress.rules import target_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from machinehub.egress.connections import Resolve
    from machinehub.egress.rules import Target
    from sandbox.protocol.effects import Pair

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_OF_THE_CONNECTION: Final = frozenset(
    {"accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "te"}
    | {"proxy-authorization", "proxy-connection", "trailer", "transfer-encoding", "upgrade"}
)
"""Headers that nobody but who makes the connection may choose."""
_OF_ONE_ORIGIN: Final = frozenset({"authorization", "cookie"})
"""Headers that a redirect to another origin must not carry along."""
_GZIP: Final = frozenset({"gzip", "x-gzip"})
_PACKED: Final = _GZIP | {"deflate"}
"""Encodings that are unpacked."""
_PACKED_MORE: Final = 64 * 1024
"""So much longer than what is in it a packed answer may be."""
_NAME: Final = re.compile("[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNSAID: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]")
"""What no header's value can have (RFC 9110, section 5.5)."""
_TOLD: Final = ("Server disconnected", "peer closed connection")
"""How errors of the protocol begin that tell nothing of what was sent."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request, and how far it may go."""

    method: str
    url: str
    headers: list[Pair] = field(default_factory=list)
    body: bytes = b""
    redirect: str = "follow"
    redirects_max: int = 5
    bytes_max: int = 256 * 1024
    header_bytes_max: int = 32 * 1024
    within_s: float = 30
    unpacks: bool = True
    """Whether the answer may be packed."""
    owner: str = ""
    """Whose it is: connections are kept for each owner, who has a share of the lookups of names."""
    is_own: bool = False
    """Whether it is the hub's own: without encryption it stays in networks that were named."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A response, whatever its status."""

    status: int
    reason: str
    url: str
    redirected: bool
    headers: list[Pair]
    body: bytes


class Egress:
    def __init__(
        self, networks: list[str], *, ca: str = "", resolve: Resolve | None = None
    ) -> None:
        """`networks` are those that the operator names, `ca` is a file of certificates that are
        believed besides the usual ones, `resolve` looks names up.
        """
        self._ca = ca
        self._networks = networks
        self._lookups = Lookups(resolve or Names())
        self._transports: dict[bool, CheckedTransport] = {}
        """By whether they reach the public internet."""

    async def close(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()
        self._transports.clear()

    async def get(self, url: str, *, owner: str, bytes_max: int, within_s: float) -> bytes:
        """The body of a 200 answer of the hub's own, over https (or from a network that the
        operator named), at a URL that `owner` chose. Raises `EgressError`.
        """
        asked = Outgoing(
            "GET",
            url,
            redirect="manual",
            bytes_max=bytes_max,
            within_s=within_s,
            unpacks=False,
            owner=owner,
            is_own=True,
        )
        answer = await self.send(asked, check=lambda _method, _target: None)
        if answer.status != 200:
            raise EgressError("egress_failed", f"the answer is {answer.status}")
        return answer.body

    async def send(
        self,
        asked: Outgoing,
        *,
        check: Callable[[str, Target], None],
        fill: Callable[[list[Pair], Target], list[Pair]] = lambda headers, _: headers,
    ) -> Incoming:
        """Sends a request, and follows redirects. Before each, `check` is asked for the method and
        where it goes, and `fill` for the headers as they are sent. Raises `EgressError`.
        """
        try:
            async with asyncio.timeout(asked.within_s):
                return await self._follow(asked, check, fill)
        except TimeoutError:
            raise Unreachable("egress_failed", f"no answer within {asked.within_s:g} s") from None
        except (
            httpcore.ConnectError,
            httpcore.NetworkError,
            httpcore.TimeoutException,
            httpcore.RemoteProtocolError,
            OSError,
        ) as error:
            raise Unreachable("egress_failed", _why(error)) from None
        except httpx.InvalidURL as error:
            raise EgressError("egress_refused", f"the URL cannot be read: {error}"[:300]) from None
        except (
            httpx.HTTPError,
            httpcore.ProtocolError,
            httpcore.UnsupportedProtocol,
            UnicodeError,
            zlib.error,
        ) as error:
            raise EgressError("egress_failed", _why(error)) from None

    async def _follow(
        self,
        asked: Outgoing,
        check: Callable[[str, Target], None],
        fill: Callable[[list[Pair], Target], list[Pair]],
    ) -> Incoming:
        method, url, body = asked.method, asked.url, asked.body
        headers = [each for each in asked.headers if each[0].lower() not in _OF_THE_CONNECTION]
        for hop in range(asked.redirects_max + 1):
            target = target_of(url)
            check(method, target)
            answer = await self._once(asked, method, url, fill(headers, target), body)
            there = dict(answer.headers).get("location")
            if answer.status not in REDIRECTS or there is None or asked.redirect == "manual":
                return Incoming(
                    answer.status, answer.reason, url, hop > 0, answer.headers, answer.body
                )
            if asked.redirect == "error":
                raise EgressError("egress_failed", "the answer is a redirect")
            url = str(httpx.URL(url).join(there).copy_with(fragment=None))
            if answer.status == 303 or (answer.status in (301, 302) and method == "POST"):
                method, body = "HEAD" if method == "HEAD" else "GET", b""
                headers = [each for each in headers if not each[0].lower().startswith("content-")]
            if target_of(url)[:3] != target[:3]:
                headers = [each for each in headers if not _is_of_one_origin(each)]
        raise EgressError("egress_failed", f"more than {asked.redirects_max} redirects")

    async def _once(
        self, asked: Outgoing, method: str, url: str, headers: list[Pair], body: bytes
    ) -> Incoming:
        usual = [("Accept-Encoding", "gzip, deflate" if asked.unpacks else "identity"), *_USUAL]
        chosen = {name.lower() for name, _ in headers}
        request = httpx.Request(
            method,
            url,
            headers=_spelled(
                [*(each for each in usual if each[0].lower() not in chosen), *headers]
            ),
            content=body if body or method in ("POST", "PUT", "PATCH") else None,
            extensions={
                "timeout": httpx.Timeout(asked.within_s).as_dict(),
                "owner": asked.owner,
            },
        )
        transport = self._transport(public=not asked.is_own or request.url.scheme == "https")
        answer = await transport.handle_async_request(request)
        try:
            got = [(name.decode("latin-1").lower(), value) for name, value in answer.headers.raw]
            if sum(len(name) + len(value) for name, value in got) > asked.header_bytes_max:
                raise EgressError(
                    "response_too_large",
                    f"the headers have more than {asked.header_bytes_max} bytes",
                )
            packed = answer.headers.get("content-encoding", "").strip().lower() or "identity"
            content = bytearray()
            if packed != "identity" and not (asked.unpacks and packed in _PACKED):
                raise EgressError("egress_failed", f"the answer is compressed ({packed[:20]})")
            async for part in _unpacked(answer, packed, asked.bytes_max):
                content += part
                if len(content) > asked.bytes_max:
                    raise _too_large(asked.bytes_max)
        finally:
            await answer.aclose()
        said = [(name, value.decode("latin-1")) for name, value in got]
        if packed in _PACKED:
            said = [each for each in said if each[0] not in ("content-encoding", "content-length")]
        reason = answer.extensions.get("reason_phrase", b"").decode("latin-1")
        return Incoming(answer.status_code, reason, url, False, said, bytes(content))

    def _transport(self, *, public: bool) -> CheckedTransport:
        if public not in self._transports:
            believed = httpx.create_ssl_context()
            if self._ca:
                believed.load_verify_locations(self._ca)
            networks = Networks(self._networks, public=public)
            self._transports[public] = CheckedTransport(networks, self._lookups, believed)
        return self._transports[public]


_USUAL: Final = [("Accept", "*/*"), ("User-Agent", "machinehub")]


def _is_of_one_origin(header: Pair) -> bool:
    return header[0].lower() in _OF_ONE_ORIGIN or "{{secret:" in header[1]


async def _unpacked(answer: httpx.Response, packed: str, bytes_max: int) -> AsyncIterator[bytes]:
    """The body as it was before it was packed, in parts of no more than was asked for: what is
    packed may be a thousand times as long as it seems, or have nothing in it for ever. Raises
    `EgressError`, `zlib.error`.
    """
    assert isinstance(answer.stream, httpx.AsyncByteStream)
    if packed not in _PACKED:
        async for part in answer.stream:
            yield part
        return
    unpacking = None
    has_begun, size = False, 0
    async for part in answer.stream:
        size += len(part)
        if size > bytes_max + _PACKED_MORE:
            raise _too_large(bytes_max)
        rest = part
        while rest:
            if unpacking is None:
                if has_begun and not (packed in _GZIP and rest[0] == _GZIP_BEGINS):
                    return  # as browsers do, what stands behind the end is left unread
                unpacking = zlib.decompressobj(_wbits(packed, rest))
                has_begun = True
            yield unpacking.decompress(rest, bytes_max + 1)
            rest = unpacking.unused_data if unpacking.eof else unpacking.unconsumed_tail
            if unpacking.eof:
                unpacking = None
    if unpacking is not None:
        raise Unreachable("egress_failed", "the answer ended too soon")


_GZIP_BEGINS: Final = 0x1F


def _wbits(packed: str, begins: bytes) -> int:
    """What zlib calls an encoding. Many servers send `deflate` without the header that it has
    (RFC 1950).
    """
    if packed in _GZIP:
        return 31
    return 15 if begins[0] & 0x0F == zlib.DEFLATED else -15


def _too_large(bytes_max: int) -> EgressError:
    return EgressError("response_too_large", f"the answer has more than {bytes_max} bytes")


def check_headers(headers: Iterable[Pair]) -> None:
    """Whether these can be headers. Raises `ValueError`, which says nothing of their values: they
    may be secrets.
    """
    for name, value in headers:
        if not _NAME.fullmatch(name):
            raise ValueError("a header's name is not one")
        if _UNSAID.search(value):
            raise ValueError(f"the header {name[:99]} has letters that none can have")


def _spelled(headers: list[Pair]) -> list[tuple[bytes, bytes]]:
    """Headers as they are sent. Raises `EgressError`."""
    try:
        check_headers(headers)
    except ValueError as error:
        raise EgressError("invalid_request", str(error)) from None
    return [(name.encode(), value.strip(" \t").encode("latin-1")) for name, value in headers]


def _why(error: Exception) -> str:
    said = str(error).strip()
    if isinstance(error, httpcore.LocalProtocolError):
        return "the request failed: it cannot be sent as HTTP"
    if isinstance(error, httpcore.ProtocolError) and not said.startswith(_TOLD):
        return "the request failed: the answer is not HTTP"  # whose text quotes what was sent
    return f"the request failed: {said or type(error).__name__}"[:300]
