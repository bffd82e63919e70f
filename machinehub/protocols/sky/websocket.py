"""The sockets of Stately's clients: `/party/<room>` and `/parties/main/<room>`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from machinehub.edge.websocket_connection import EXTENSION, HubSocket
from machinehub.errors import HubError
from machinehub.protocols.sky import rooms
from machinehub.protocols.sky.connection import Connection, Dialects, Over, Parts
from machinehub.protocols.sky.places import Places

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive, Scope, Send

    from machinehub.clock import Clock, Entropy
    from machinehub.edge.gate import Gate
    from machinehub.edge.revoked import Watch
    from machinehub.limits import Limits
    from machinehub.metrics import Metrics
    from machinehub.principal import Principal
    from machinehub.protocols.sky.connection import Machines
    from machinehub.session.port import Sessions


class SkySockets:
    """The ASGI callable for them."""

    def __init__(
        self,
        sessions: Sessions,
        machines: Machines,
        clock: Clock,
        entropy: Entropy,
        limits: Limits,
        metrics: Metrics,
        gate: Gate,
        identify: Callable[[Scope, list[str]], Awaitable[Principal | None]],
        watch: Watch,
    ) -> None:
        self._metrics = metrics
        self._machines = machines
        places = Places(sessions)
        over, dialects = Over(clock), Dialects()
        self._parts = Parts(
            sessions,
            machines,
            clock,
            entropy,
            limits,
            metrics,
            gate,
            identify,
            watch,
            places,
            {},
            over,
            dialects,
        )

    def takes(self, scope: Scope) -> bool:
        """Whether a connection is this protocol's."""
        return scope["type"] == "websocket" and rooms.is_room(scope["raw_path"])

    async def refuse(self, error: HubError, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses the handshake: such a client listens to nothing that does not carry its key,
        which nobody knows yet.
        """
        await Response(error.detail, error.status)(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._machines.machine(rooms.machine_of(scope["raw_path"]))
        except HubError as error:
            self._metrics.refused.labels(code=error.code).inc()
            await self.refuse(error, scope, receive, send)
            return
        await receive()  # websocket.connect
        await send({"type": "websocket.accept"})
        socket: Any = scope["extensions"][EXTENSION]
        assert isinstance(socket, HubSocket)
        self._metrics.connections.inc()
        try:
            await Connection(self._parts, scope, socket).serve(receive)
        finally:
            self._metrics.connections.dec()
