"""How packets get from one node to another: NATS carries them, and holds nothing.

A packet may be lost, come twice or late; `links.py` finds out. Subjects are `machinehub.<node>`,
and `machinehub.all` for everybody: they hold no text of users.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from nats.aio.client import Client
from nats.errors import Error as NatsError

from machinehub.errors import Unavailable
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from nats.aio.msg import Msg

    from machinehub.ids import NodeId

log = logging.getLogger("machinehub.cluster")

SUBJECT: Final = "machinehub"
CONNECT_S: Final = 5
RECONNECT_WAIT_S: Final = 0.1
PING_S: Final = 2
"""A NATS server that does not answer for two of these is given up."""
STOP_S: Final = 1
PENDING_BYTES: Final = 256 * 1024 * 1024


class Bus(Protocol):
    """`start` before anything is sent; `receive` hears of packets, in the event loop."""

    packet_bytes_max: int

    async def start(self, node: NodeId, receive: Callable[[bytes], None]) -> None:
        """Raises `Unavailable`."""
        ...

    async def stop(self) -> None: ...

    @property
    def is_connected(self) -> bool: ...

    def send(self, node: NodeId, packet: bytes) -> None:
        """To one node, if it can be reached; nothing is kept for later."""
        ...

    def spread(self, packet: bytes) -> None:
        """To every node, this one included."""
        ...


class NatsBus:
    def __init__(
        self, url: str, *, credentials: Path | None = None, ca: Path | None = None
    ) -> None:
        """`url` may name several servers, parted by commas, with user and password or token.
        `credentials` is a file of NATS' own; `ca` the certificate that servers are signed by.
        """
        self._servers = [each.strip() for each in url.split(",")]
        self._credentials = credentials
        self._ca = ca
        self._client: Client | None = None
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._has_mail = asyncio.Event()
        self._error: Exception | None = None
        """What went wrong last."""
        self._tasks = Tasks()
        self.packet_bytes_max = 1024 * 1024

    async def start(self, node: NodeId, receive: Callable[[bytes], None]) -> None:
        async def take(message: Msg) -> None:
            receive(message.data)

        more: dict[str, Any] = {}
        if self._credentials is not None:
            more["user_credentials"] = str(self._credentials)
        if self._ca is not None:
            more["tls"] = ssl.create_default_context(cafile=self._ca)
        client = self._client = Client()

        async def connect() -> None:
            await client.connect(
                servers=self._servers,
                name=f"machinehub {node}",
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type] # seconds
                ping_interval=PING_S,
                max_outstanding_pings=2,
                disconnected_cb=self._disconnected,
                reconnected_cb=self._reconnected,
                error_cb=self._failed,
                **more,
            )
            for subject in (f"{SUBJECT}.{node}", f"{SUBJECT}.all"):
                await client.subscribe(
                    subject, cb=take, pending_msgs_limit=0, pending_bytes_limit=PENDING_BYTES
                )
            await client.flush(CONNECT_S)

        try:
            await _within(CONNECT_S, connect())
        except (NatsError, OSError, TimeoutError, ValueError) as error:
            why = self._error or error
            raise Unavailable(
                "unavailable", f"NATS does not answer (MACHINEHUB_NATS_URL): {why or type(why)}"
            ) from error
        self.packet_bytes_max = min(self.packet_bytes_max, self._client.max_payload)
        self._tasks.spawn(self._post_on(client))

    async def stop(self) -> None:
        """What was sent is on its way when this returns, as far as NATS takes it."""
        if self._client is None:
            return
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            await _within(STOP_S, self._flush(self._client))
        self._tasks.stop()
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            await _within(STOP_S, self._client.close())

    async def _flush(self, client: Client) -> None:
        while self._outbox:
            await asyncio.sleep(0.01)
        await client.flush(STOP_S)

    @property
    def is_connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    def send(self, node: NodeId, packet: bytes) -> None:
        self._post(f"{SUBJECT}.{node}", packet)

    def spread(self, packet: bytes) -> None:
        self._post(f"{SUBJECT}.all", packet)

    def _post(self, subject: str, packet: bytes) -> None:
        # What waited for a connection would come too late, to links that were given up.
        if self.is_connected:
            self._outbox.append((subject, packet))
            self._has_mail.set()

    async def _post_on(self, client: Client) -> None:
        while True:
            await self._has_mail.wait()
            self._has_mail.clear()
            while self._outbox:
                subject, packet = self._outbox.popleft()
                try:
                    await client.publish(subject, packet)
                except (NatsError, OSError) as error:
                    log.debug("a packet was lost: %s", error)

    async def _disconnected(self) -> None:
        self._outbox.clear()
        log.warning("NATS cannot be reached: sessions of other nodes wait")

    async def _reconnected(self) -> None:
        log.warning("NATS is reached again")

    async def _failed(self, error: Exception) -> None:
        self._error = error
        log.debug("NATS: %r", error)


async def _within(seconds: float, work: Coroutine[None, None, None]) -> None:
    """Raises `TimeoutError` when it takes longer: then nobody waits for it any more. (The library
    tries for ever, and now and then takes a cancellation for one more failure.)
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_look_at)
    if not task.done():
        raise TimeoutError
    task.result()


def _look_at(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()
