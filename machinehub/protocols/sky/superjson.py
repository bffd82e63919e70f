"""The part of superjson (npm, versions 1 and 2) that Stately's clients use: `{"json", "meta"?}`.

`json` is a value as JSON; `meta.values` says by path which parts of it were no JSON before. What is
read here becomes what `JSON.stringify` would have made of the value that was sent, since that is
what a native client sends. What `JSON.stringify` would lose without a word is refused: a `Map`, a
`BigInt`, an error.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

PARTS_MAX: Final = 1000
"""How many parts of one value may be more than JSON."""
_DEPTH_MAX: Final = 64

_AS_JSON: Final = frozenset({"Date", "URL"})
"""Kinds whose text in `json` is what `JSON.stringify` gives."""


class NotSuperjson(Exception):
    """`str` says why, for whoever sent it."""


class _Meta(msgspec.Struct):
    values: Any = None
    referential: Any = msgspec.field(default=None, name="referentialEqualities")


class _Document(msgspec.Struct):
    json: Any
    meta: _Meta | None = None


_decode: Final = msgspec.json.Decoder(_Document).decode
_ABSENT: Final = object()


def read(text: bytes) -> Any:
    """The value of a document. Raises `NotSuperjson`."""
    try:
        document = _decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise NotSuperjson(f"not superjson: {error}"[:300]) from None
    if document.meta is None:
        return document.json
    _refuse_cycles(document)
    holder = {"": document.json}
    for path, kinds in _annotations(document.meta.values):
        _restore(holder, ["", *path], kinds)
    return holder.get("")


def _annotations(values: Any) -> list[tuple[list[str], list[Any]]]:
    """Paths, and what stands there. The tree of superjson is a map of dotted paths to leaves
    (`[kind]`) or to inner nodes (`[kind, tree]`, `tree`); at the top a leaf is the value itself.
    """
    found: list[tuple[list[str], list[Any]]] = []

    def walk(tree: Any, at: list[str], depth: int) -> None:
        if depth > _DEPTH_MAX or len(found) > PARTS_MAX:
            raise NotSuperjson("too many parts of the value are more than JSON")
        if isinstance(tree, dict):
            for path, below in tree.items():
                parts = _parts(path)
                if len(at) + len(parts) > _DEPTH_MAX:
                    raise NotSuperjson("a path of meta.values leads too deep")
                walk(below, at + parts, depth + 1)
        elif isinstance(tree, list) and tree and not isinstance(tree[0], dict):
            if len(tree) > 1:  # innermost first: a container's kind is about what it holds
                walk(tree[1], at, depth + 1)
            found.append((at, tree[0] if isinstance(tree[0], list) else [tree[0]]))
        else:
            raise NotSuperjson("not superjson: meta.values is no tree of kinds")

    if values is not None:
        walk(values, [], 0)
    return found


def _parts(path: str) -> list[str]:
    """A dotted path, in which `\\.` is a dot of a name (and `\\\\` a backslash, from version 2
    on).
    """
    parts, part, escaped = [], "", False
    if path.count(".") > 2 * _DEPTH_MAX:
        raise NotSuperjson("a path leads too deep")
    for char in path:
        if escaped:
            part, escaped = part + (char if char in ".\\" else "\\" + char), False
        elif char == "\\":
            escaped = True
        elif char == ".":
            parts.append(part)
            part = ""
        else:
            part += char
    return [*parts, part + ("\\" if escaped else "")]


def _restore(holder: Any, path: list[str], kinds: list[Any]) -> None:
    """Makes one part what `JSON.stringify` would have made of it."""
    *above, last = path
    for part in above:
        holder = _child(holder, part)
        if holder is _ABSENT:
            raise _no_such_part(path)
    value = _child(holder, last)
    kind = kinds[0] if kinds else None
    if value is _ABSENT:
        raise _no_such_part(path)
    if kind == "undefined":
        _remove(holder, last)
    elif kind == "number":  # NaN and the infinities, which come as text; -0
        _put(holder, last, 0 if value == "-0" else None)
    elif not (isinstance(kind, str) and kind in _AS_JSON):
        shown = kind if isinstance(kind, str) else "custom"
        raise NotSuperjson(
            f"a value of the kind {shown[:40]!r} is no JSON, at {'.'.join(path[1:])[:200]!r}"
        )


def _child(holder: Any, part: str) -> Any:
    if isinstance(holder, dict):
        return holder.get(part, _ABSENT)
    if isinstance(holder, list) and part.isascii() and part.isdigit() and int(part) < len(holder):
        return holder[int(part)]
    return _ABSENT


def _remove(holder: Any, part: str) -> None:
    if isinstance(holder, dict):
        del holder[part]
    else:
        holder[int(part)] = None


def _put(holder: Any, part: str, value: Any) -> None:
    holder[part if isinstance(holder, dict) else int(part)] = value


def _no_such_part(path: list[str]) -> NotSuperjson:
    shown = ".".join(path[1:])[:200]
    return NotSuperjson(f"not superjson: there is nothing at {shown!r}")


def _refuse_cycles(document: _Document) -> None:
    """Values that stood in two places are repeated in `json`; where they held themselves, null
    stands instead, which is not what was sent.
    """
    assert document.meta is not None
    for path in _copies(document.meta.referential)[: PARTS_MAX + 1]:
        value: Any = document.json
        for part in _parts(path):
            value = _child(value, part)
        if value is None or value is _ABSENT:
            raise NotSuperjson("a value that holds itself is no JSON")


def _copies(said: Any) -> list[str]:
    """The paths of values that stand elsewhere, too: a map of lists, or, where the whole value is
    one of those, a list with its paths, and perhaps the others as such a map.
    """
    if said is None:
        return []
    rest = said
    groups: list[Any] = []
    if isinstance(said, list) and said:
        groups, rest = [said[0]], said[1] if len(said) > 1 else {}
    try:
        groups += msgspec.convert(rest, dict[str, list[str]]).values()
        return [path for paths in msgspec.convert(groups, list[list[str]]) for path in paths]
    except msgspec.ValidationError:
        raise NotSuperjson("not superjson: meta.referentialEqualities is no map") from None
