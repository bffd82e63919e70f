"""Which node a session that none has should be on: rendezvous hashing, weighted by capacity.

Every node computes the same from the same list of nodes. When a node comes or goes, only sessions
that it should have, or had, are placed anew. Where two nodes' lists differ for a moment, the claim
in the database decides.
Source: D. Thaler, C. Ravishankar, "Using name-based mappings to increase hit rates" (1998); the
weights as in J. Resch, "New hashing algorithms for data storage" (2015).
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from machinehub.ids import MachineId, NodeId, SessionId


def place(
    nodes: Mapping[NodeId, int], machine_id: MachineId, session_id: SessionId
) -> NodeId | None:
    """The node for a session; `nodes` has the capacity of each. None where there is none."""
    name = f"{machine_id}/{session_id}".encode(errors="surrogatepass")
    return max(nodes, key=lambda node: (_score(node, nodes[node], name), node), default=None)


def _score(node: NodeId, capacity: int, name: bytes) -> float:
    digest = blake2b(name, digest_size=8, key=node.encode()).digest()
    share = (int.from_bytes(digest) + 1) / (2**64 + 1)
    return -max(capacity, 1) / math.log(share)
