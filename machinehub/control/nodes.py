"""The deploy API's part for hubs that share a database: which there are, and ending one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from starlette.responses import Response

from machinehub.clock import timestamp
from machinehub.edge.admission import principal_of
from machinehub.edge.problem import Json
from machinehub.errors import NotFound
from machinehub.ids import NodeId

if TYPE_CHECKING:
    import builtins
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from machinehub.control.audit import Audit
    from machinehub.control.routes import Guarded
    from machinehub.store.nodes import NodeRecord


class Nodes(Protocol):
    """Who the nodes are, as one of them sees it."""

    node: NodeId

    @property
    def nodes(self) -> list[NodeRecord]: ...


class NodeApi:
    def __init__(
        self,
        nodes: Nodes | None,
        tell_to_drain: Callable[[NodeId], Awaitable[None]],
        audit: Audit,
    ) -> None:
        """`nodes` is None for a hub that shares its database with nobody."""
        self._nodes = nodes
        self._tell_to_drain = tell_to_drain
        self._audit = audit

    def calls(self) -> builtins.list[Guarded]:
        return [
            ("admin", "GET", "/nodes", self.list),
            ("admin", "POST", "/nodes/{node}/drain", self.drain),
        ]

    async def list(self, request: Request) -> Response:
        principal_of(request.scope).must_rule()
        found = self._nodes.nodes if self._nodes is not None else []
        return Json({"data": [self._show(each) for each in found], "next": None})

    async def drain(self, request: Request) -> Response:
        """The node ends as it does when it is sent SIGTERM."""
        principal_of(request.scope).must_rule()
        wanted = NodeId(request.path_params["node"])
        known = self._nodes.nodes if self._nodes is not None else []
        if wanted not in {each.id for each in known}:
            raise NotFound("no_such_node", "there is no such node, or it ended")
        await self._tell_to_drain(wanted)
        await self._audit.note(request, "told node %s to end", wanted)
        return Response(status_code=202)

    def _show(self, node: NodeRecord) -> dict[str, Any]:
        return {
            "id": node.id,
            "name": node.name,
            "answers": self._nodes is not None and node.id == self._nodes.node,
            "version": node.software,
            "started_at": timestamp(node.started_at_ms),
            "capacity": node.capacity,
            "draining": node.load.draining or node.told_to_drain,
            "sessions": node.load.sessions,
            "connections": node.load.connections,
            "turns": node.load.turns,
        }
