"""Connections to checked addresses.

Where a name leads is looked up once for each connection, all of its addresses are checked, and the
connection goes to one that was checked: a name that leads elsewhere the next moment (DNS rebinding)
gains nothing. Names stay what requests and certificates are about (Host, SNI).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakValueDictionary

import httpcore
import httpx

from machinehub.egress.addresses import Unreachable
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from machinehub.egress.addresses import Networks

    Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
    """The addresses of a host, for a port. Raises `OSError`."""

LOOKUPS_AT_ONCE: Final = 256
"""Names that are looked up, each in a thread: a slow server of names must not hold up the others of
the hub's threads.
"""
LOOKUPS_OF_ONE: Final = 4
"""Of one owner, who may have chosen a server of names that never answers."""
KEPT_MAX: Final = 50
"""Connections of one origin that are kept for so long after their last request."""
KEPT_S: Final = 30.0
TRY_S: Final = 5.0
"""So long one address is tried while there is another."""
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
"""RFC 9110, section 9.3: what a body of these would mean is not defined."""
_Name = tuple[str, str]
"""Whose connections, and to which origin."""


class Names:
    """Looks names up as the operating system does."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOKUPS_AT_ONCE, "names")

    async def __call__(self, host: str, port: int) -> list[str]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [str(each[4][0]) for each in found]


class Lookups:
    """Looks names up by `resolve`, a few of each owner at once."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def of(self, owner: str, host: str, port: int) -> Sequence[str]:
        """Raises `OSError`."""
        share = self._shares.get(owner)
        if share is None:
            share = self._shares[owner] = asyncio.Semaphore(LOOKUPS_OF_ONE)
        await share.acquire()

        async def look() -> Sequence[str]:
            try:
                return await self._resolve(host, port)
            finally:
                share.release()

        looking = asyncio.ensure_future(look())
        looking.add_done_callback(_is_heard)
        # Nobody can end the thread: it counts until it is free, also when its request was given up.
        return await asyncio.shield(looking)


def _is_heard(done: asyncio.Future[Any]) -> None:
    """What it raised is nobody's any more where the request was given up."""
    if not done.cancelled():
        done.exception()


class CheckedConnections(httpcore.AsyncNetworkBackend):
    """How connections of an owner are made: to addresses that `networks` lets through."""

    def __init__(self, networks: Networks, resolve: Resolve) -> None:
        self._networks = networks
        self._resolve = resolve
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - as httpcore has it
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises `EgressError`, `httpcore.ConnectError`."""
        try:
            addresses = [ip_address(each) for each in await self._resolve(host, port)]
        except (OSError, UnicodeError, ValueError):
            addresses = []
        if not addresses:
            raise Unreachable("egress_failed", "the host's name leads nowhere")
        for address in addresses:
            self._networks.check(address)
        for address in addresses[:-1]:
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._inner.connect_tcp(
                    str(address), port, TRY_S, local_address, socket_options
                )
        return await self._inner.connect_tcp(
            str(addresses[-1]), port, timeout, local_address, socket_options
        )

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class CheckedTransport(httpx.AsyncBaseTransport):
    """Sends the requests of httpx over such connections, of which some are kept for the next
    request to the same origin of the same owner (the request's extension `owner`): what one left on
    a connection must not become another's request or answer. Raises what httpcore raises, and
    `EgressError`.

    httpcore has a pool, too, which looks at all of its connections for each request: with a hundred
    of them that costs 2 ms of CPU.
    """

    def __init__(self, networks: Networks, lookups: Lookups, context: ssl.SSLContext) -> None:
        self._networks = networks
        self._lookups = lookups
        self._context = context
        self._idle: dict[_Name, list[_Kept]] = {}
        """The one that was used last is the last."""
        self._sweeping: asyncio.TimerHandle | None = None
        self._closing = Tasks()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        name = request.extensions.get("owner", ""), str(target.origin)
        connection = await self._connection(name, target.origin)
        try:
            answer = await connection.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=target,
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except BaseException:
            await connection.aclose()
            raise
        # Some servers do not read such a body, and take it for the next request.
        is_read = request.method not in _WITHOUT_BODY or not request.headers.get("content-length")
        then = functools.partial(self._keep, name) if is_read else _close
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Stream(answer, lambda: then(connection)),
            extensions=answer.extensions,
            request=request,
        )

    async def aclose(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        while self._idle:
            for kept in self._idle.popitem()[1]:
                await kept.connection.aclose()

    async def _connection(
        self, name: _Name, origin: httpcore.Origin
    ) -> httpcore.AsyncHTTPConnection:
        kept = self._idle.get(name)
        while kept:
            connection = kept.pop().connection
            if not kept:
                del self._idle[name]
            if connection.is_available() and not connection.has_expired():
                return connection
            await connection.aclose()
        return httpcore.AsyncHTTPConnection(
            origin,
            ssl_context=self._context,
            keepalive_expiry=KEPT_S,
            network_backend=CheckedConnections(
                self._networks, functools.partial(self._lookups.of, name[0])
            ),
        )

    async def _keep(self, name: _Name, connection: httpcore.AsyncHTTPConnection) -> None:
        """The answer was read: another request may follow."""
        kept = self._idle.get(name, [])
        if not connection.is_available() or _has_more(connection) or len(kept) >= KEPT_MAX:
            await connection.aclose()
            return
        loop = asyncio.get_running_loop()
        self._idle.setdefault(name, kept).append(_Kept(connection, loop.time() + KEPT_S))
        if self._sweeping is None:
            self._sweeping = loop.call_later(KEPT_S, self._sweep)

    def _sweep(self) -> None:
        """Closes those that nobody needed for a while."""
        loop = asyncio.get_running_loop()
        over: list[_Kept] = []
        for name, kept in list(self._idle.items()):
            over += [each for each in kept if each.until_s <= loop.time()]
            self._idle[name] = [each for each in kept if each.until_s > loop.time()]
            if not self._idle[name]:
                del self._idle[name]
        self._sweeping = loop.call_later(KEPT_S, self._sweep) if self._idle else None
        for each in over:
            self._closing.spawn(each.connection.aclose())


def _has_more(connection: httpcore.AsyncHTTPConnection) -> bool:
    """Whether the server sent more than one answer: nobody asked for the rest, which would be taken
    for the answer to the next request. httpcore itself looks at the socket alone; what was read
    from that is in three places. Where it cannot be told, there may be more.
    """
    try:
        stream = _STREAM(connection)
        more = bool(_UNPARSED(connection)[0])
        plain = getattr(stream, "transport_stream", None)
        if plain is not None:  # below TLS
            more = more or bool(_ENCRYPTED(stream).pending or _DECRYPTED(stream).pending())
        return more or bool(_RECEIVED(stream if plain is None else plain))
    except AttributeError:
        return True


_STREAM: Final = attrgetter("_connection._network_stream._stream")
"""The stream of anyio below a connection of httpcore, neither of which says what it holds."""
_UNPARSED: Final = attrgetter("_connection._h11_state.trailing_data")
_ENCRYPTED: Final = attrgetter("_read_bio")
_DECRYPTED: Final = attrgetter("_ssl_object")
_RECEIVED: Final = attrgetter("_protocol.read_queue")


async def _close(connection: httpcore.AsyncHTTPConnection) -> None:
    await connection.aclose()


class _Kept(NamedTuple):
    connection: httpcore.AsyncHTTPConnection
    until_s: float


class _Stream(httpx.AsyncByteStream):
    def __init__(self, answer: httpcore.Response, then: Callable[[], Awaitable[None]]) -> None:
        self._answer = answer
        self._then = then

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._answer.aiter_stream():
            yield part

    async def aclose(self) -> None:
        await self._answer.aclose()
        await self._then()
