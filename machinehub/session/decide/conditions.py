"""What `POST .../wait` waits for, decided on a snapshot."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from machinehub.errors import BadRequest


@lru_cache(maxsize=4)
def _decode(snapshot: bytes) -> Any:
    """Everybody who waits looks at the same snapshot."""
    return msgspec.json.decode(snapshot)


class Condition(msgspec.Struct, frozen=True):
    """`holds` for a snapshot that is done, has a tag, or is in a state (in whole or in part, as
    XState's `matches`).
    """

    done: bool = False
    tag: str | None = None
    state: Any = None

    def holds(self, snapshot: bytes) -> bool:
        seen = _decode(snapshot)
        if not isinstance(seen, dict):  # a machine's view may show anything
            return False
        if self.done:
            return bool(seen.get("status") == "done")
        if self.tag is not None:
            tags = seen.get("tags")
            return isinstance(tags, list) and self.tag in tags
        return matches(self.state, seen.get("value"))


def read_condition(value: object) -> Condition:
    """Reads `"done"`, `{"tag": "..."}` or `{"matches": <state value>}`. Raises `BadRequest`."""
    match value:
        case "done":
            return Condition(done=True)
        case {"tag": str(tag), **rest} if not rest:
            return Condition(tag=tag)
        case {"matches": str() | dict() as state, **rest} if not rest and _is_state(state):
            return Condition(state=state)
    raise BadRequest(
        "invalid_condition", 'a condition is "done", {"tag": "..."} or {"matches": <state value>}'
    )


def _is_state(value: object) -> bool:
    """Whether it is a state value of XState's: a name, or regions by name."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_state(each) for key, each in value.items())
    return isinstance(value, str)


def matches(wanted: object, actual: object) -> bool:
    """Whether the state value `actual` is in `wanted`: XState's `matchesState`, dotted paths
    included.
    """
    if isinstance(wanted, str) and "." in wanted:
        first, rest = wanted.split(".", 1)
        wanted = {first: rest}
    if isinstance(wanted, str):
        return (
            actual == wanted
            if isinstance(actual, str)
            else isinstance(actual, dict) and wanted in actual
        )
    if not isinstance(wanted, dict) or not isinstance(actual, dict):
        return False
    return all(key in actual and matches(value, actual[key]) for key, value in wanted.items())
