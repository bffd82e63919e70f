"""TypeScript for a machine that says no types: from its definition, and from the contexts that were
seen.

Decides how values become types. The same machine always gives the same text: keys are sorted,
unions too.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

_NAME: Final = re.compile(r"[A-Za-z_$][\w$]*")
KEYS_MAX: Final = 32
"""An object with more keys is a dictionary."""


def quoted(text: str) -> str:
    """A string literal.

    What ends a comment or a script is escaped: the file may be pasted anywhere.
    """
    return (
        json.dumps(text).replace("/", "\\/") if "*/" in text or "</" in text else json.dumps(text)
    )


def key(name: str) -> str:
    return name if _NAME.fullmatch(name) else quoted(name)


def union(parts: list[str], *, empty: str = "never") -> str:
    return " | ".join(dict.fromkeys(sorted(parts))) or empty


def state_value(node: dict[str, Any]) -> str:
    """The type of a node's state value: XState's shape, one string for an atomic child, an object
    for the rest.
    """
    states = _states(node)
    if not states:
        return "{}"
    if node.get("type") == "parallel":
        return (
            "{ "
            + "; ".join(f"{key(name)}: {state_value(states[name])}" for name in sorted(states))
            + " }"
        )
    return union(
        [
            quoted(name) if not _states(child) else f"{{ {key(name)}: {state_value(child)} }}"
            for name, child in states.items()
        ]
    )


def _states(node: dict[str, Any]) -> dict[str, Any]:
    """The children that a session can be in, by name."""
    return {
        name: child
        for name, child in (node.get("states") or {}).items()
        if child.get("type") != "history"
    }


def initial_value(definition: dict[str, Any]) -> Any:
    """The state value that the machine begins with, before any `always`."""
    return _initial(definition["root"])


def _initial(node: dict[str, Any]) -> Any:
    states = _states(node)
    if not states:
        return {}
    if node.get("type") == "parallel":
        return {name: _initial(child) for name, child in states.items()}
    chosen = next(
        ((name, child) for name, child in states.items() if child.get("id") == node.get("initial")),
        next(iter(states.items())),
    )
    return {chosen[0]: _initial(chosen[1])} if _states(chosen[1]) else chosen[0]


def tags(definition: dict[str, Any]) -> str:
    found: list[str] = []
    waiting = [definition["root"]]
    while waiting:
        node = waiting.pop()
        found += map(quoted, node.get("tags") or [])
        waiting += (node.get("states") or {}).values()
    return union(found)


def events(definition: dict[str, Any]) -> str:
    """Events by name alone: what they carry is not known."""
    parts = []
    for name in definition.get("events") or []:
        if name.startswith(("xstate.", "presence.")):
            continue
        type_ = (
            "string"
            if name == "*"
            else f"`{name[:-2]}.${{string}}` | {quoted(name[:-2])}"
            if name.endswith(".*") and "`" not in name and "$" not in name and "\\" not in name
            else quoted(name)
        )
        parts.append(f"{{ type: {type_}; [key: string]: unknown }}")
    return union(parts)


def observed(values: list[Any]) -> str:
    """A type that all of `values` have."""
    if not values:
        return "unknown"
    parts: list[str] = []
    objects = [value for value in values if isinstance(value, dict)]
    arrays = [value for value in values if isinstance(value, list)]
    if objects:
        parts.append(_object(objects))
    if arrays:
        items = [item for array in arrays for item in array]
        inner = observed(items)
        parts.append(f"{inner}[]" if re.fullmatch(r"[\w.]+", inner) else f"({inner})[]")
    for kind, name in ((bool, "boolean"), (str, "string")):
        if any(isinstance(value, kind) for value in values):
            parts.append(name)
    if any(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        parts.append("number")
    if any(value is None for value in values):
        parts.append("null")
    # Only null was seen: it will be something else some day.
    return "unknown" if parts == ["null"] else union(parts)


def _object(objects: list[dict[str, Any]]) -> str:
    names = sorted({name for value in objects for name in value})
    if not names:
        return "{}"
    if len(names) > KEYS_MAX or _is_dictionary(objects):
        return (
            f"Record<string, {observed([inner for value in objects for inner in value.values()])}>"
        )
    return (
        "{ "
        + "; ".join(
            f"{key(name)}{'' if all(name in value for value in objects) else '?'}: "
            f"{observed([value[name] for value in objects if name in value])}"
            for name in names
        )
        + " }"
    )


def _is_dictionary(objects: list[dict[str, Any]]) -> bool:
    """Whether the keys look like ids: other ones in each object, and every value an object of one
    shape.
    """
    filled = [value for value in objects if value]
    shared = set.intersection(*(set(value) for value in filled)) if filled else set()
    values = [inner for value in filled for inner in value.values()]
    return (
        len(filled) > 1
        and not shared
        and all(isinstance(value, dict) for value in values)
        and len({observed([value]) for value in values}) == 1
    )
