"""What a machine's definition says of a state value: which states are active, what they take. As
the client does it (clients/js/src/definition.ts).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator


def events_of(definition: dict[str, Any], value: Any) -> list[str]:
    """The types of the events that the machine names and a client may send now, sorted. Guards are
    code, and count as true.
    """
    types = {
        transition["event"]
        for node in _active(definition["root"], value)
        for transition in node.get("transitions", [])
        if transition["kind"] == "event"
    }
    return sorted(
        name for name in types if not name.startswith(("xstate.", "presence.")) and name[-1:] != "*"
    )


_UNITS: Final = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000))


def duration(ms: int) -> str:
    """Milliseconds as people say them, in the two largest units that it takes; exact, or in ms."""
    said: list[str] = []
    rest = ms
    for unit, size in _UNITS:
        if rest >= size:
            said.append(f"{rest // size} {unit}")
            rest %= size
    return " ".join(said) if said and not rest and len(said) <= 2 else f"{ms} ms"


def _active(node: dict[str, Any], value: Any) -> Iterator[dict[str, Any]]:
    yield node
    inner = {value: None} if isinstance(value, str) else value if isinstance(value, dict) else {}
    for key, rest in inner.items():
        child = node.get("states", {}).get(key)
        if child is not None:
            yield from _active(child, rest)
