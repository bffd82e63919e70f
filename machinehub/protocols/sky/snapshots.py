"""Persisted snapshots in the two dialects of Stately's clients.

`snapshot` is what XState 5 restores. `persistedState` is for its version 5.0.0-beta.37, in which a
child is `{state, src}` rather than `{snapshot, src}`, what a state invokes without a name is called
otherwise, and histories name nodes that cannot be restored from JSON at all.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEPTH_MAX: Final = 64
_UNNAMED: Final = re.compile(r"([0-9]+)\.(.+)", re.DOTALL)
"""A child that the state `<id>` invokes as its `<number>`th: `<number>.<id>`."""
_INLINE: Final = re.compile(r"xstate\.invoke\.([0-9]+)\.(.+)", re.DOTALL)
"""What such a child runs, where that stands in the state itself."""


def to_beta(snapshot: Any, unnamed: frozenset[str] | None, depth: int = 0) -> Any:
    """The snapshot as XState 5.0.0-beta.37 restores it: with `state` in every child, beside
    `snapshot`, and its names for children. `unnamed` are the ids of children that states invoke
    without giving them one (`unnamed_in`); None for those of a child, which nobody knows here.
    """
    children = snapshot.get("children") if isinstance(snapshot, dict) else None
    if not isinstance(children, dict) or not children or depth > _DEPTH_MAX:
        return snapshot
    renamed: dict[str, Any] = {}
    for key, child in children.items():
        found = _UNNAMED.fullmatch(key)
        is_unnamed = found is not None and (unnamed is None or key in unnamed)
        name = f"{found[2]}[{found[1]}]" if found is not None and is_unnamed else key
        renamed[name] = _child(child, depth) if isinstance(child, dict) else child
    return snapshot | {"children": renamed}


def _child(child: dict[str, Any], depth: int) -> dict[str, Any]:
    made = child | {"state": to_beta(child.get("snapshot"), None, depth + 1)}
    inline = _INLINE.fullmatch(str(child.get("src")))
    if inline is not None:
        made["src"] = f"xstate#{inline[2]}[{inline[1]}]"
    return made


def nodes_of(definition: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All state nodes of a definition."""
    waiting = [definition.get("root")]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.get("states", {}).values()


def unnamed_in(definition: dict[str, Any]) -> frozenset[str]:
    """The ids that XState 5 gave to what states invoke without a name."""
    return frozenset(
        invoke["id"]
        for node in nodes_of(definition)
        for number, invoke in enumerate(node.get("invoke", []))
        if invoke.get("id") == f"{number}.{node.get('id')}"
    )


def has_history(definition: dict[str, Any]) -> bool:
    """Whether there is a history state."""
    return any(node.get("type") == "history" for node in nodes_of(definition))
