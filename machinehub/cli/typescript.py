"""What a machine's TypeScript says of its types: the `types` of `setup` or `createMachine`, with
the declarations that they lean on.

Decides without a compiler: the type of `types` is taken as it is written, and every type that it
names is followed through the uploaded files. No name leaves that is not declared there, bound where
it stands, or everybody's: what would need a compiler (`typeof` of a value) or another package's
types is left out, so that something better than nothing can take its place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from machinehub.cli.modules import (
    DECLARATIONS,
    Modules,
    Source,
    all_of,
    asserted_type,
    is_literal,
)

if TYPE_CHECKING:
    from tree_sitter import Node

STEPS_MAX: Final = 64
"""Of following an expression to the machine that it makes."""
_KEEPING: Final = frozenset(
    {
        "Array",
        "Map",
        "Partial",
        "Promise",
        "Readonly",
        "ReadonlyArray",
        "ReadonlyMap",
        "ReadonlySet",
        "Record",
        "Required",
        "Set",
    }
)
"""Generic types that an unknown argument leaves useful."""
_EVERYBODYS: Final = _KEEPING | {
    "Awaited",
    "BigInt",
    "Boolean",
    "Capitalize",
    "Date",
    "Error",
    "Exclude",
    "Extract",
    "Function",
    "InstanceType",
    "Iterable",
    "Lowercase",
    "NoInfer",
    "NonNullable",
    "Number",
    "Object",
    "Omit",
    "Parameters",
    "Pick",
    "RegExp",
    "ReturnType",
    "String",
    "Symbol",
    "URL",
    "Uint8Array",
    "Uncapitalize",
    "Uppercase",
}
_BINDING: Final = frozenset(
    {
        *DECLARATIONS,
        "function_type",
        "constructor_type",
        "method_signature",
        "call_signature",
        "construct_signature",
    }
)
_UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Said:
    """Types as the source says them."""

    type: str
    """TypeScript: an object type with some of XState's `context`, `events`, `tags`, `output`,
    `emitted`, `input`.
    """
    says_context: bool
    namespaces: list[str]
    """Declarations that it names, a namespace for each file."""
    unknown: list[str]
    """What could not be known."""


def types_said(files: dict[str, str], entry: str) -> Said | None:
    """The types of the machine that `entry` exports; None when it says none."""
    modules = Modules(files)
    source = modules.source(entry)
    if source is None or not entry.endswith((".ts", ".tsx", ".mts")):
        return None
    names = ["default", "machine", *modules.names_exported(source)]
    exported = next(
        (found for name in names if (found := modules.exported(source, name)) is not None), None
    )
    found = types_of_machine(modules, *exported) if exported is not None else None
    try:
        return None if found is None else _Reader(modules).said(*found)
    except RecursionError:  # unions in objects in unions, deeper than anybody writes
        return None


def types_of_machine(modules: Modules, source: Source, node: Node) -> tuple[Source, Node] | None:
    """The value of `types` in the call that makes a machine: `createMachine({types})`,
    `setup({types}).createMachine()`, through constants.
    """
    here: tuple[Source, Node] | None = (source, node)
    for _ in range(STEPS_MAX):
        if here is None:
            return None
        source, node = here
        if node.type in (
            "as_expression",
            "satisfies_expression",
            "parenthesized_expression",
            "non_null_expression",
        ):
            here = source, node.named_children[0]
        elif node.type == "identifier":
            here = modules.value(source, source.of(node))
        elif node.type == "call_expression":
            callee = node.child_by_field_name("function")
            if callee is None:
                return None
            makes = _is_call_of(source, callee, "createMachine") or _is_call_of(
                source, callee, "setup"
            )
            if makes and (types := _types_of_call(modules, source, node)) is not None:
                return types
            here = (
                (source, callee.named_children[0]) if callee.type == "member_expression" else None
            )
        else:
            return None
    return None


def _is_call_of(source: Source, callee: Node, name: str) -> bool:
    if callee.type == "member_expression":
        called = callee.child_by_field_name("property")
        return called is not None and source.of(called) == name
    return (
        callee.type == "identifier"
        and source.imports.get(source.of(callee), ("", source.of(callee)))[1] == name
    )


def _types_of_call(modules: Modules, source: Source, call: Node) -> tuple[Source, Node] | None:
    arguments = call.child_by_field_name("arguments")
    first = (
        next((child for child in arguments.named_children if child.type != "comment"), None)
        if arguments is not None
        else None
    )
    given = _object(modules, source, first) if first is not None else None
    if given is None:
        return None
    source, options = given
    for pair in options.named_children:
        if pair.type == "shorthand_property_identifier" and source.of(pair) == "types":
            return modules.value(source, "types")
        key = pair.child_by_field_name("key") if pair.type == "pair" else None
        value = (
            pair.child_by_field_name("value")
            if key is not None and source.of(key).strip("'\"") == "types"
            else None
        )
        if value is not None:
            return (
                modules.value(source, source.of(value)) or (source, value)
                if value.type == "identifier"
                else (source, value)
            )
    return None


def _object(modules: Modules, source: Source, node: Node) -> tuple[Source, Node] | None:
    """An object literal, through a constant, `as const` and `satisfies`."""
    for _ in range(STEPS_MAX):
        if node.type == "object":
            return source, node
        if node.type in ("as_expression", "satisfies_expression", "parenthesized_expression"):
            node = node.named_children[0]
        elif (
            node.type == "identifier"
            and (found := modules.value(source, source.of(node))) is not None
        ):
            source, node = found
        else:
            return None
    return None


class _Reader:
    """Types on their way out of their files."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._wanted: dict[str, dict[str, str]] = {}
        """For each file the declarations that are needed, by name."""
        self._waiting: list[tuple[Source, str]] = []
        self._unknown: list[str] = []

    def said(self, source: Source, types: Node) -> Said:
        asserted = asserted_type(types)
        if asserted is not None:
            text = self._take(source, asserted)
            says_context = asserted.type != "object_type" or any(
                source.of(name) == "context"
                for member in asserted.named_children
                if (name := member.child_by_field_name("name")) is not None
            )
        else:
            given = _object(self._modules, source, types)
            members: dict[str, str] = {}
            for pair in given[1].named_children if given is not None else ():
                key, value = pair.child_by_field_name("key"), pair.child_by_field_name("value")
                type_ = asserted_type(value) if value is not None and given is not None else None
                if (
                    key is not None
                    and type_ is not None
                    and given is not None
                    and (taken := self._take(given[0], type_)) != _UNKNOWN
                ):
                    members[given[0].of(key)] = taken
            text = "{ " + "; ".join(f"{key}: {type_}" for key, type_ in members.items()) + " }"
            says_context = "context" in members
            if not members:
                self._unknown.append("`types`")
        while self._waiting:
            there, wanted = self._waiting.pop()
            self._wanted[there.path][wanted] = "\n".join(
                self._declaration(there, node) for node in there.types[wanted]
            )
        namespaces = [_namespace(index, names) for index, names in enumerate(self._wanted.values())]
        return Said(text, says_context, namespaces, self._unknown)

    def _declaration(self, source: Source, node: Node) -> str:
        if node.type == "enum_declaration" and not all(
            is_literal(value)
            for member in all_of(node, "enum_assignment")
            if (value := member.child_by_field_name("value")) is not None
        ):
            self._unknown.append(source.of(node).split("{")[0].strip())
            name = node.child_by_field_name("name")
            return f"type {source.of(name)} = {_UNKNOWN}" if name is not None else ""
        return self._take(source, node)

    def _take(self, source: Source, node: Node, bound: frozenset[str] = frozenset()) -> str:
        """A type's text as it reads from outside: names of the source's own are put into its
        namespace.
        """
        edits: list[tuple[int, int, str]] = []
        waiting: list[tuple[Node, frozenset[str]]] = [(node, bound)]
        while waiting:
            here, bound = waiting.pop()
            bound |= _bound_by(source, here)
            edit = self._edit(source, here, bound)
            if edit is not None:
                edits.append((here.start_byte, here.end_byte, edit))
                continue
            declared = here.child_by_field_name("name") if here.type in DECLARATIONS else None
            waiting.extend((child, bound) for child in here.children if child != declared)
        if edits and (edits[0][0], edits[0][1]) == (node.start_byte, node.end_byte):
            return edits[0][2]
        text, at = "", node.start_byte
        for start, end, new in sorted(edits):
            text += source.text[at:start].decode(errors="replace") + new
            at = end
        return text + source.text[at : node.end_byte].decode(errors="replace")

    def _edit(self, source: Source, node: Node, bound: frozenset[str]) -> str | None:
        """What stands in a node's place; None to look at its parts."""
        match node.type:
            case "comment":
                return ""
            case "type_identifier":
                return self._name(source, node, bound)
            case "nested_type_identifier" | "nested_identifier":
                return self._nested(source, node)
            case "type_query":
                return self._give_up(source, node)
            case "property_signature" if any(
                child.type == "computed_property_name" for child in node.named_children
            ):
                self._give_up(source, node)
                return f'"(computed {len(self._unknown)})"?: never'
            case "extends_type_clause" | "extends_clause":
                kept = [self._take_known(source, child, bound) for child in node.named_children]
                return "extends " + ", ".join(text for text in kept if text) if any(kept) else ""
            case "generic_type" if not self._is_known(source, node, bound):
                return self._give_up(source, node)
            case "lookup_type" if (listed := self._listed(source, node)) is not None:
                return listed
            case "lookup_type" if not self._is_known(source, node.named_children[0], bound):
                return self._give_up(source, node)
            case "index_type_query" if not self._is_known(source, node.named_children[-1], bound):
                return self._give_up(source, node)
            case "union_type":
                return self._union(source, node, bound)
            case "call_expression" | "member_expression" | "import":
                return self._give_up(source, node)
        return None

    def _listed(self, source: Source, node: Node) -> str | None:
        """`(typeof LIST)[number]` of a list of literals: the union of them. None for all else."""
        query, index = node.named_children[0], node.named_children[-1]
        while query.type == "parenthesized_type":
            query = query.named_children[0]
        if query.type != "type_query" or source.of(index) != "number":
            return None
        found = self._modules.value(source, source.of(query.named_children[-1]))
        if found is None:
            return None
        there, value = found
        if value.type != "as_expression" or not there.of(value).endswith("const"):
            return None
        items = value.named_children[0].named_children
        if value.named_children[0].type != "array" or not all(map(is_literal, items)):
            return None
        return " | ".join(dict.fromkeys(map(there.of, items))) or None

    def _union(self, source: Source, node: Node, bound: frozenset[str]) -> str | None:
        """Without the members that are not known: one of those would make the whole unknown."""
        members, waiting = [], [node]
        while waiting:
            here = waiting.pop()
            if here.type == "union_type":
                waiting.extend(reversed(here.named_children))
            elif here.type != "comment":
                members.append(here)
        known = [member for member in members if self._is_known(source, member, bound)]
        if len(known) == len(members):
            return " | ".join(self._take(source, member, bound) for member in members)
        for member in members:
            if member not in known:
                self._give_up(source, member)
        return " | ".join(self._take(source, member, bound) for member in known) or _UNKNOWN

    def _take_known(self, source: Source, node: Node, bound: frozenset[str]) -> str:
        if self._is_known(source, node, bound):
            return self._take(source, node, bound)
        self._give_up(source, node)
        return ""

    def _is_known(self, source: Source, node: Node, bound: frozenset[str]) -> bool:
        """Whether a type can leave its file: by its name, and for a generic one by its
        arguments.
        """
        if node.type == "lookup_type" and self._listed(source, node) is not None:
            return True
        if node.type == "type_identifier":
            return self._where(source, source.of(node), bound) != _UNKNOWN
        if node.type == "nested_type_identifier":
            return self._nested_name(source, node) is not None
        if node.type == "generic_type":
            name = node.named_children[0]
            arguments = [
                argument for list_ in node.named_children[1:] for argument in list_.named_children
            ]
            useful = source.of(name) in _KEEPING or all(
                self._is_known(source, argument, bound) for argument in arguments
            )
            return self._is_known(source, name, bound) and useful
        if node.type in (
            "lookup_type",
            "parenthesized_type",
            "array_type",
            "index_type_query",
            "readonly_type",
        ):
            return all(self._is_known(source, child, bound) for child in node.named_children[:1])
        return node.type not in ("type_query", "call_expression", "member_expression")

    # --- names ------------------------------------------------------------------------------------

    def _name(self, source: Source, node: Node, bound: frozenset[str]) -> str | None:
        where = self._where(source, source.of(node), bound)
        if where == _UNKNOWN:
            return self._give_up(source, node)
        return where

    def _where(self, source: Source, name: str, bound: frozenset[str]) -> str | None:
        """How a type's name is written outside of its file; None for as it is: bound where it
        stands, or everybody's.
        """
        if name in bound:
            return None
        declaring = (
            self._modules.declaring(source, name)
            if name in source.types or name in source.imports
            else None
        )
        if declaring is not None:
            return self._want(*declaring)
        return None if name in _EVERYBODYS and name not in source.imports else _UNKNOWN

    def _nested(self, source: Source, node: Node) -> str:
        return self._nested_name(source, node) or self._give_up(source, node)

    def _nested_name(self, source: Source, node: Node) -> str | None:
        """`Namespace.Type` of `import * as Namespace`, `Enum.Member`."""
        head, name = source.of(node.named_children[0]), source.of(node.named_children[-1])
        module, there = source.imports.get(head, ("", ""))
        if there == "*" and (found := self._modules.imported(source, module)) is not None:
            declaring = self._modules.declaring(found, name)
            return None if declaring is None else self._want(*declaring)
        declaring = (
            self._modules.declaring(source, head)
            if head in source.types or head in source.imports
            else None
        )
        return None if declaring is None else f"{self._want(*declaring)}.{name}"

    def _want(self, source: Source, name: str) -> str:
        wanted = self._wanted.setdefault(source.path, {})
        if name not in wanted:
            wanted[name] = ""
            self._waiting.append((source, name))
        return f"{_prefix(list(self._wanted).index(source.path))}.{name}"

    def _give_up(self, source: Source, node: Node) -> str:
        self._unknown.append(" ".join(source.of(node).split())[:80])
        return _UNKNOWN


def _bound_by(source: Source, node: Node) -> frozenset[str]:
    """Names that a node binds for what is inside of it."""
    names: list[Node | None] = []
    if node.type in _BINDING:
        names += [
            parameter.child_by_field_name("name")
            for child in node.named_children
            if child.type == "type_parameters"
            for parameter in child.named_children
        ]
    elif node.type in ("object_type", "interface_body", "index_signature"):
        clauses = [
            child
            for child in (
                *node.named_children,
                *(inner for child in node.named_children for inner in child.named_children),
            )
            if child.type == "mapped_type_clause"
        ]
        names += [clause.child_by_field_name("name") for clause in clauses]
    elif node.type == "conditional_type":
        names += [clause.named_children[0] for clause in all_of(node, "infer_type")]
    return frozenset(source.of(name) for name in names if name is not None)


def _prefix(index: int) -> str:
    return f"Source{index or ''}"


def _namespace(index: int, declarations: dict[str, str]) -> str:
    lines = [
        "  " + re.sub(r"^(export|declare|default)\s+", "", text).strip()
        for text in declarations.values()
    ]
    return (
        f"export declare namespace {_prefix(index)} {{\n"
        + "\n".join(line if line.endswith(("}", ";")) else line + ";" for line in lines)
        + "\n}"
    )
