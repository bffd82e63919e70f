"""Connections to checked addresses.

Where a name leads is looked up once for each connection, all of its addresses are checked, and the
connection goes to one that was checked: a name that leads elsewhere the next moment (DNS rebinding)
gains nothing. Names stay what requests and certificates are about (Host, SNI).
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import httpcore
import httpx

from machinehub.egress.addresses import Unreachable

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from machinehub.egress.addresses import Networks

    Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
    """The addresses of a host, for a port. Raises `OSError`."""

LOOKUPS_AT_ONCE: Final = 16
"""Names that are looked up, each in a thread: a slow server of names must not hold up the others of
the hub's threads.
"""
CONNECTIONS_MAX: Final = 400
KEPT_MAX: Final = 100
KEPT_S: Final = 30.0


class Names:
    """Looks names up as the operating system does."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOKUPS_AT_ONCE, "names")

    async def __call__(self, host: str, port: int) -> list[str]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [str(each[4][0]) for each in found]


class CheckedConnections(httpcore.AsyncNetworkBackend):
    """How connections are made: to addresses that `networks` lets through."""

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
        return await self._inner.connect_tcp(
            str(addresses[0]), port, timeout, local_address, socket_options
        )

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class CheckedTransport(httpx.AsyncBaseTransport):
    """Sends the requests of httpx over such connections. Raises what httpcore raises, and
    `EgressError`.
    """

    def __init__(self, networks: Networks, resolve: Resolve, context: ssl.SSLContext) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=CONNECTIONS_MAX,
            max_keepalive_connections=KEPT_MAX,
            keepalive_expiry=KEPT_S,
            network_backend=CheckedConnections(networks, resolve),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        answer = await self._pool.handle_async_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Stream(answer),
            extensions=answer.extensions,
            request=request,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Stream(httpx.AsyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._answer.aiter_stream():
            yield part

    async def aclose(self) -> None:
        await self._answer.aclose()
