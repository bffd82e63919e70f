"""What a machine's TypeScript says of its types: the `types` of `setup` or `createMachine`, with the declarations that they lean on.

Decides without a compiler: the source is parsed, the type of `types` is taken as it is written, and every type that it names is followed
through the uploaded files. What would need a compiler (`typeof` of a value) or another package's types becomes `unknown`.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import tree_sitter_typescript
from tree_sitter import Language, Parser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tree_sitter import Node

_GRAMMARS: Final = {
    True: Language(tree_sitter_typescript.language_tsx()), False: Language(tree_sitter_typescript.language_typescript()),
}  # fmt: skip
_SUFFIXES: Final = ("", ".ts", ".tsx", ".mts", "/index.ts", "/index.tsx")
_DECLARATIONS: Final = ("type_alias_declaration", "interface_declaration", "enum_declaration")
DEPTH_MAX: Final = 8
"""Of following a name through constants and files."""


@dataclass(frozen=True, slots=True)
class Said:
    """Types as the source says them."""

    type: str
    """TypeScript: an object type with some of XState's `context`, `events`, `tags`, `output`, `emitted`, `input`."""
    namespaces: list[str]
    """Declarations that it names, a namespace for each file."""
    unknown: list[str]
    """What could not be known, and stands there as `unknown`."""


@dataclass(slots=True)
class Source:
    """One file: what it declares, imports and exports."""

    path: str
    text: bytes
    root: Node
    types: dict[str, Node] = field(default_factory=dict)
    values: dict[str, Node] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Local name to (module, name there)."""
    exports: dict[str, Node] = field(default_factory=dict)

    def of(self, node: Node) -> str:
        return self.text[node.start_byte : node.end_byte].decode(errors="replace")


def types_said(files: dict[str, str], entry: str) -> Said | None:
    """The types of the machine that `entry` exports; None when it says none."""
    reader = _Reader(files)
    source = reader.source(entry)
    if source is None or not entry.endswith((".ts", ".tsx", ".mts")):
        return None
    exported = source.exports.get("default") or source.exports.get("machine") or next(iter(source.exports.values()), None)
    found = reader.find(source, exported, DEPTH_MAX) if exported is not None else None
    if found is None:
        return None
    where, node = found
    return reader.said(where, node)


class _Reader:
    def __init__(self, files: dict[str, str]) -> None:
        self._files = files
        self._sources: dict[str, Source | None] = {}
        self._wanted: dict[str, dict[str, str]] = {}
        """For each file the declarations that are needed, by name."""
        self._unknown: list[str] = []

    # --- files -------------------------------------------------------------------------------------------------

    def source(self, path: str) -> Source | None:
        if path not in self._sources:
            text = self._files.get(path)
            self._sources[path] = None if text is None else _read(path, text.encode(errors="replace"))
        return self._sources[path]

    def imported(self, source: Source, module: str) -> Source | None:
        """The file that a relative import means."""
        if not module.startswith("."):
            return None
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source.path), module))
        stems = [path, re.sub(r"\.[mc]?jsx?$", "", path)]
        return next((found for stem in stems for suffix in _SUFFIXES if (found := self.source(stem + suffix)) is not None), None)

    # --- the machine -------------------------------------------------------------------------------------------

    def find(self, source: Source, node: Node, depth: int) -> tuple[Source, Node] | None:
        """The value of the `types` that a machine's expression has, looking through constants and imports."""
        for call in _all(node, "call_expression"):
            callee = call.child_by_field_name("function")
            name = source.of(callee).rsplit(".", 1)[-1].strip() if callee is not None else ""
            if name in ("setup", "createMachine") and (types := _types_of_call(source, call)) is not None:
                return source, types
        if depth == 0:
            return None
        for name in dict.fromkeys(source.of(identifier) for identifier in _all(node, "identifier")):
            value: Node | None = source.values.get(name)
            there: Source | None = source
            if value is None and name in source.imports:
                module, name_there = source.imports[name]
                there = self.imported(source, module)
                value = there.exports.get(name_there) if there is not None else None
            if value is not None and there is not None and value != node and (found := self.find(there, value, depth - 1)):
                return found
        return None

    def said(self, source: Source, types: Node) -> Said:
        asserted = _asserted(types)
        if asserted is not None:
            text = self._take(source, asserted)
        else:
            pairs = [child for child in types.named_children if child.type == "pair"] if types.type == "object" else []
            members = []
            for pair in pairs:
                key, value = pair.child_by_field_name("key"), pair.child_by_field_name("value")
                asserted = _asserted(value) if value is not None else None
                if key is not None and asserted is not None:
                    members.append(f"{source.of(key)}: {self._take(source, asserted)}")
            text = "{ " + "; ".join(members) + " }"
        namespaces = [_namespace(index, names) for index, names in enumerate(self._wanted.values())]
        return Said(text, namespaces, self._unknown)

    # --- types -------------------------------------------------------------------------------------------------

    def _take(self, source: Source, node: Node) -> str:
        """A type's text as it reads from outside: names of the source's own are put into its namespace."""
        bound = {source.of(name) for parameter in _all(node, "type_parameter") if (name := parameter.child_by_field_name("name")) is not None}
        bound |= {source.of(name) for clause in _all(node, "infer_type") for name in clause.named_children[:1]}
        bound |= {source.of(name) for clause in _all(node, "mapped_type_clause") if (name := clause.child_by_field_name("name")) is not None}
        edits: list[tuple[int, int, str]] = []
        self._edit(source, node, bound, edits)
        text, at = "", node.start_byte
        for start, end, new in sorted(edits):
            text += source.text[at:start].decode(errors="replace") + new
            at = end
        return text + source.text[at : node.end_byte].decode(errors="replace")

    def _edit(self, source: Source, node: Node, bound: set[str], edits: list[tuple[int, int, str]]) -> None:
        if node.type == "type_query":
            self._unknown.append(source.of(node))
            edits.append((node.start_byte, node.end_byte, "unknown"))
        elif node.type == "comment":
            edits.append((node.start_byte, node.end_byte, ""))
        elif node.type == "generic_type" and self._is_foreign(source, node.named_children[0]):
            self._unknown.append(source.of(node))
            edits.append((node.start_byte, node.end_byte, "unknown"))
        elif node.type == "nested_type_identifier":
            if self._is_foreign(source, node.named_children[0]) or source.of(node.named_children[0]) not in {*source.types, *source.imports, "Intl"}:
                self._unknown.append(source.of(node))
                edits.append((node.start_byte, node.end_byte, "unknown"))
            elif (name := self._name(source, source.of(node.named_children[0]), bound)) is not None:
                edits.append((node.named_children[0].start_byte, node.named_children[0].end_byte, name))
        elif node.type == "type_identifier":
            if (name := self._name(source, source.of(node), bound)) is not None:
                edits.append((node.start_byte, node.end_byte, name))
        else:
            declared = node.child_by_field_name("name") if node.type in _DECLARATIONS else None
            for child in node.children:
                if child != declared:
                    self._edit(source, child, bound, edits)

    def _is_foreign(self, source: Source, node: Node) -> bool:
        name = source.of(node)
        return name in source.imports and self._declaring(source, name) is None

    def _name(self, source: Source, name: str, bound: set[str]) -> str | None:
        """How a type's name is written outside of its file; None for as it is: the language's own, or a parameter."""
        if name in bound or (name not in source.types and name not in source.imports):
            return None
        declaring = self._declaring(source, name)
        if declaring is None:
            self._unknown.append(f'{name} of "{source.imports[name][0]}"')
            return "unknown"
        there, name_there = declaring
        self._want(there, name_there)
        return f"{_prefix(list(self._wanted).index(there.path))}.{name_there}"

    def _declaring(self, source: Source, name: str) -> tuple[Source, str] | None:
        """The file that declares a type, through imports; None when it is none of ours."""
        for _ in range(DEPTH_MAX):
            if name in source.types:
                return source, name
            if name not in source.imports:
                return None
            module, name = source.imports[name]
            there = self.imported(source, module)
            if there is None:
                return None
            source = there
        return None

    def _want(self, source: Source, name: str) -> None:
        wanted = self._wanted.setdefault(source.path, {})
        if name not in wanted:
            wanted[name] = ""  # types may lean on themselves
            wanted[name] = self._take(source, source.types[name])


def _prefix(index: int) -> str:
    return f"Source{index or ''}"


def _namespace(index: int, declarations: dict[str, str]) -> str:
    lines = ["  " + re.sub(r"^(export|declare)\s+", "", text).strip() for text in declarations.values()]
    return f"declare namespace {_prefix(index)} {{\n" + "\n".join(line if line.endswith(("}", ";")) else line + ";" for line in lines) + "\n}"


# --- reading one file


def _read(path: str, text: bytes) -> Source:
    root = Parser(_GRAMMARS[path.endswith((".tsx", ".jsx", ".js", ".mjs"))]).parse(text).root_node
    source = Source(path, text, root)
    for statement in root.named_children:
        _read_statement(source, statement)
    return source


def _read_statement(source: Source, statement: Node) -> None:
    if statement.type == "import_statement":
        _read_import(source, statement)
        return
    exported = statement.type == "export_statement"
    declaration = statement.child_by_field_name("declaration") if exported else statement
    if exported and (value := statement.child_by_field_name("value")) is not None:
        source.exports["default"] = value
    if exported and declaration is None:
        for specifier in _all(statement, "export_specifier"):
            _read_export(source, statement, specifier)
    if declaration is None:
        return
    if declaration.type == "ambient_declaration" and declaration.named_children:
        declaration = declaration.named_children[0]
    name = declaration.child_by_field_name("name")
    if declaration.type in _DECLARATIONS and name is not None:
        source.types[source.of(name)] = declaration
    for declarator in declaration.named_children if declaration.type == "lexical_declaration" else ():
        name, value = declarator.child_by_field_name("name"), declarator.child_by_field_name("value")
        if name is not None and value is not None:
            source.values[source.of(name)] = value
            if exported:
                source.exports[source.of(name)] = value


def _read_import(source: Source, statement: Node) -> None:
    module = statement.child_by_field_name("source")
    for clause in _all(statement, "import_clause") if module is not None else ():
        for child in clause.named_children:
            if child.type == "identifier":
                source.imports[source.of(child)] = (source.of(module)[1:-1], "default")  # type: ignore[arg-type]
            elif child.type == "namespace_import":
                source.imports[source.of(child.named_children[0])] = (source.of(module)[1:-1], "*")  # type: ignore[arg-type]
        for specifier in _all(clause, "import_specifier"):
            name, alias = specifier.child_by_field_name("name"), specifier.child_by_field_name("alias")
            if name is not None:
                source.imports[source.of(alias or name)] = (source.of(module)[1:-1], source.of(name))  # type: ignore[arg-type]


def _read_export(source: Source, statement: Node, specifier: Node) -> None:
    """`export { a as b }`, `export { a } from "./there"`."""
    name, alias, module = specifier.child_by_field_name("name"), specifier.child_by_field_name("alias"), statement.child_by_field_name("source")
    if name is None:
        return
    if module is not None:
        source.imports[source.of(alias or name)] = (source.of(module)[1:-1], source.of(name))
    source.exports[source.of(alias or name)] = name


def _all(node: Node, kind: str) -> Iterator[Node]:
    """Every node of a kind, outermost first. Without recursion: a stranger's file may nest as deep as it likes."""
    waiting = [node]
    while waiting:
        here = waiting.pop()
        if here.type == kind:
            yield here
        waiting.extend(reversed(here.named_children))


def _types_of_call(source: Source, call: Node) -> Node | None:
    arguments = call.child_by_field_name("arguments")
    first = next((child for child in arguments.named_children if child.type != "comment"), None) if arguments is not None else None
    if first is None or first.type != "object":
        return None
    for pair in first.named_children:
        key = pair.child_by_field_name("key") if pair.type == "pair" else None
        if key is not None and source.of(key).strip("'\"") == "types":
            return pair.child_by_field_name("value")
    return None


def _asserted(value: Node) -> Node | None:
    """The type of `x as T`, `<T>x`, with or without brackets."""
    while value.type == "parenthesized_expression":
        value = value.named_children[0]
    if value.type == "as_expression":
        return value.named_children[-1]
    if value.type == "type_assertion":
        return next((child for argument in value.named_children if argument.type == "type_arguments" for child in argument.named_children), None)
    return None
