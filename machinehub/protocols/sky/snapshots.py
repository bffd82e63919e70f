"""Persisted snapshots in the two dialects of Stately's clients.

`snapshot` is what XState 5 restores. `persistedState` is for its version 5.0.0-beta.37, in which a
child is `{state, src}` rather than `{snapshot, src}`, and histories name nodes that cannot be
restored from JSON at all.
"""

from __future__ import annotations

from typing import Any, Final

_DEPTH_MAX: Final = 64


def to_beta(snapshot: Any, depth: int = 0) -> Any:
    """The same snapshot with `state` in every child, beside `snapshot`, which XState 5 reads."""
    children = snapshot.get("children") if isinstance(snapshot, dict) else None
    if not isinstance(children, dict) or not children or depth > _DEPTH_MAX:
        return snapshot
    return snapshot | {
        name: {
            key: child | {"state": to_beta(child.get("snapshot"), depth + 1)}
            if isinstance(child, dict)
            else child
            for key, child in children.items()
        }
        for name in ("children",)
    }


def has_history(node: Any) -> bool:
    """Whether a state of a definition, or one below it, is a history state."""
    if not isinstance(node, dict):
        return False
    if node.get("type") == "history":
        return True
    return any(has_history(below) for below in node.get("states", {}).values())
