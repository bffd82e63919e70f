"""What events carry besides their type, as far as a machine's TypeScript says it: for the forms of
the machine's page.

Decides without a compiler, from the types that `typescript.py` finds: objects of which `type` is a
literal, and what their other members are. Whatever else a type may be is a field for JSON.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal

import tree_sitter_typescript
from tree_sitter import Language, Parser

from machinehub.cli.typescript import types_said
from machinehub.limits import PAYLOAD_EVENTS_MAX, PAYLOAD_FIELDS_MAX, PAYLOAD_TEXT_CHARS_MAX
from machinehub.model import PayloadField

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tree_sitter import Node

STEPS_MAX: Final = 16
"""Of following names, and of unions in unions."""
VALUES_MAX: Final = 50
"""Of a choice; more of them are written, not chosen."""
_GRAMMAR: Final = Language(tree_sitter_typescript.language_typescript())
_OBJECTS: Final = ("object_type", "interface_body", "intersection_type")
_PLAIN: Final[dict[str, Literal["text", "number", "boolean"]]] = {
    "number": "number",
    "string": "text",
    "boolean": "boolean",
}


def payloads_of(files: dict[str, str], entry: str) -> dict[str, list[PayloadField]]:
    """The fields of each event by its type, of those that have any."""
    try:
        return _payloads(files, entry)
    except RecursionError:  # types that contain themselves
        return {}


def _payloads(files: dict[str, str], entry: str) -> dict[str, list[PayloadField]]:
    said = types_said(files, entry)
    if said is None:
        return {}
    text = "\n".join([*said.namespaces, f"type Said = {said.type};"]).encode()
    reader = _Reader(text)
    found: dict[str, list[PayloadField]] = {}
    for event in reader.events():
        fields, names = reader.event(event)
        for name in names:
            short = len(name) <= PAYLOAD_TEXT_CHARS_MAX
            if fields and short and len(found) < PAYLOAD_EVENTS_MAX:
                found.setdefault(name, fields[:PAYLOAD_FIELDS_MAX])
    return found


class _Reader:
    def __init__(self, text: bytes) -> None:
        self._text = text
        self._root = Parser(_GRAMMAR).parse(text).root_node
        self._types: dict[str, Node] = {}
        for node in _declarations(self._root):
            name = node.child_by_field_name("name")
            body = node.child_by_field_name("value") or node.child_by_field_name("body")
            if name is not None and body is not None:
                self._types[self._of(name)] = body

    def _of(self, node: Node) -> str:
        return self._text[node.start_byte : node.end_byte].decode(errors="replace")

    def events(self) -> list[Node]:
        """The object types that events are."""
        said = self._types.get("Said")
        members = dict(self._members(said)) if said is not None else {}
        events = members.get("events")
        parts = self._parts(events[0], STEPS_MAX) if events is not None else []
        return [part for part in parts if part.type in _OBJECTS]

    def event(self, node: Node) -> tuple[list[PayloadField], list[str]]:
        """The fields of an event, and the types that it has."""
        fields: list[PayloadField] = []
        names: list[str] = []
        for name, (kind, optional) in self._members(node):
            if name == "type":
                values = [self._literal(part) for part in self._parts(kind, STEPS_MAX)]
                names = [value for value in values if isinstance(value, str)]
            elif name != "sender" and len(name) <= PAYLOAD_TEXT_CHARS_MAX:
                fields.append(self._field(name, kind, optional=optional))
        return fields, names

    def _field(self, name: str, node: Node, *, optional: bool) -> PayloadField:
        parts = [part for part in self._parts(node, STEPS_MAX) if self._of(part) != "undefined"]
        optional = optional or len(parts) < len(self._parts(node, STEPS_MAX))
        plain = {_PLAIN.get(self._of(part)) for part in parts}
        if len(plain) == 1 and (kind := plain.pop()) is not None:
            return PayloadField(name=name, kind=kind, optional=optional)
        values = [self._literal(part) for part in parts]
        fits = 0 < len(values) <= VALUES_MAX and all(
            len(str(value)) <= PAYLOAD_TEXT_CHARS_MAX for value in values
        )
        if fits and not any(value is _NONE for value in values):
            return PayloadField(name=name, kind="choice", optional=optional, values=values)
        return PayloadField(name=name, kind="json", optional=optional)

    def _members(self, node: Node) -> Iterator[tuple[str, tuple[Node, bool]]]:
        if node.type == "intersection_type":
            for each in node.named_children:
                for part in self._parts(each, STEPS_MAX):
                    if part.type in _OBJECTS:
                        yield from self._members(part)
            return
        for member in node.named_children:
            name = member.child_by_field_name("name")
            kind = member.child_by_field_name("type")
            if member.type == "property_signature" and name is not None and kind is not None:
                optional = any(child.type == "?" for child in member.children)
                yield self._of(name).strip("'\""), (kind.named_children[0], optional)

    def _parts(self, node: Node, steps: int) -> list[Node]:
        """A type as the union that it is, names followed."""
        if steps == 0:
            return [node]
        if node.type == "union_type":
            return [part for each in node.named_children for part in self._parts(each, steps - 1)]
        if node.type == "parenthesized_type":
            return self._parts(node.named_children[0], steps - 1)
        if node.type in ("type_identifier", "nested_type_identifier"):
            known = self._types.get(self._of(node).rpartition(".")[2])
            return [node] if known is None else self._parts(known, steps - 1)
        return [node]

    def _literal(self, node: Node) -> Any:
        """The value of a literal type; `_NONE` for any other."""
        if node.type != "literal_type" or not node.named_children:
            return _NONE
        text = self._of(node)
        if text[:1] in "'`":
            text = json.dumps(text[1:-1].replace("\\'", "'"))
        try:
            return json.loads(text)
        except ValueError:
            return _NONE


_NONE: Final = object()


def _declarations(root: Node) -> Iterator[Node]:
    waiting = [root]
    for node in waiting:  # which grows while it is walked
        if node.type in ("type_alias_declaration", "interface_declaration"):
            yield node
        else:
            waiting += node.named_children
