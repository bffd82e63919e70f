"""TypeScript files as far as `machinehub types` needs to read them: what one declares, imports and
exports, and where a name leads.

Decides without a compiler. Nothing here recurses with the depth of a file: a stranger's may nest as
deep as it likes.
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
    True: Language(tree_sitter_typescript.language_tsx()),
    False: Language(tree_sitter_typescript.language_typescript()),
}
SUFFIXES: Final = (
    "",
    ".ts",
    ".tsx",
    ".mts",
    ".d.ts",
    ".d.mts",
    "/index.ts",
    "/index.tsx",
    "/index.d.ts",
)
DECLARATIONS: Final = ("type_alias_declaration", "interface_declaration", "enum_declaration")
STEPS_MAX: Final = 16
"""Of following a name from file to file."""


@dataclass(slots=True)
class Source:
    """One file."""

    path: str
    text: bytes
    types: dict[str, list[Node]] = field(default_factory=dict)
    """Declarations of a name; interfaces may have several."""
    values: dict[str, Node] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Local name to (module, name there); `*` is the whole module."""
    exports: dict[str, Node] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    """Exported name to local name, where they differ."""
    everything_of: list[str] = field(default_factory=list)
    """Modules of `export * from`."""

    def of(self, node: Node) -> str:
        return self.text[node.start_byte : node.end_byte].decode(errors="replace")


class Modules:
    """The files of an upload."""

    def __init__(self, files: dict[str, str]) -> None:
        self._files = files
        self._sources: dict[str, Source | None] = {}

    def source(self, path: str) -> Source | None:
        if path not in self._sources:
            text = self._files.get(path)
            self._sources[path] = (
                None if text is None else read(path, text.encode(errors="replace"))
            )
        return self._sources[path]

    def imported(self, source: Source, module: str) -> Source | None:
        """The file that a relative import means."""
        return next(
            (
                found
                for path in candidates(source.path, module)
                if (found := self.source(path)) is not None
            ),
            None,
        )

    def declaring(self, source: Source, name: str) -> tuple[Source, str] | None:
        """The file that declares a type, through imports and re-exports; None when it is none of
        ours.
        """
        waiting = [(source, name)]
        seen: set[tuple[str, str]] = set()
        for here, wanted in waiting:  # which grows while it is walked
            if (here.path, wanted) in seen:
                continue
            seen.add((here.path, wanted))
            local = here.renamed.get(wanted, wanted)
            if local in here.types:
                return here, local
            if local in here.imports:
                module, there = here.imports[local]
                if (found := self.imported(here, module)) is not None:
                    waiting.append((found, there))
            else:
                waiting += [
                    (found, wanted)
                    for module in here.everything_of
                    if (found := self.imported(here, module)) is not None
                ]
        return None

    def value(self, source: Source, name: str) -> tuple[Source, Node] | None:
        """What a name stands for: a constant's initial value, here or where it was imported
        from.
        """
        for _ in range(STEPS_MAX):
            if name in source.values:
                return source, source.values[name]
            if name not in source.imports:
                return None
            module, there = source.imports[name]
            found = self.imported(source, module)
            if found is None or there == "*":
                return None
            exported = self.exported(found, there)
            if exported is None or exported[1].type != "identifier":
                return exported
            source, name = exported[0], exported[0].of(exported[1])
        return None

    def exported(self, source: Source, name: str) -> tuple[Source, Node] | None:
        """The value of an export, or the identifier that it names, in the file that has it."""
        for _ in range(STEPS_MAX):
            here = next(
                (here for here in self._with_everything(source) if name in here.exports), None
            )
            if here is None:
                return None
            local = here.renamed.get(name, name)
            if local not in here.imports:
                return here, here.exports[name]
            module, name = here.imports[local]
            found = self.imported(here, module)
            if found is None:
                return None
            source = found
        return None

    def names_exported(self, source: Source) -> list[str]:
        return [name for here in self._with_everything(source) for name in here.exports]

    def _with_everything(self, source: Source) -> list[Source]:
        """A file, and those of which it exports everything."""
        files = {source.path: source}
        waiting = [source]
        for here in waiting:
            for found in [
                found
                for module in here.everything_of
                if (found := self.imported(here, module)) is not None
            ]:
                if found.path not in files:
                    files[found.path] = found
                    waiting.append(found)
        return list(files.values())


def candidates(path: str, module: str) -> list[str]:
    """Where a relative import of the file `path` may lead, best first; nothing for a package."""
    if not module.startswith("."):
        return []
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), module))
    stems = dict.fromkeys([target, re.sub(r"\.([mc]?)jsx?$", "", target)])
    return [stem + suffix for stem in stems for suffix in SUFFIXES]


def modules_named(path: str, text: str) -> list[str]:
    """The relative modules that a file imports or exports from, types included."""
    source = read(path, text.encode(errors="replace"))
    return [
        module
        for module in dict.fromkeys(
            [*(module for module, _ in source.imports.values()), *source.everything_of]
        )
        if module.startswith(".")
    ]


def read(path: str, text: bytes) -> Source:
    root = Parser(_GRAMMARS[path.endswith((".tsx", ".jsx", ".js", ".mjs"))]).parse(text).root_node
    source = Source(path, text)
    for statement in root.named_children:
        if statement.type == "import_statement":
            _read_import(source, statement)
        else:
            _read_statement(source, statement)
    return source


def _read_statement(source: Source, statement: Node) -> None:
    exported = statement.type == "export_statement"
    declaration = statement.child_by_field_name("declaration") if exported else statement
    is_default = exported and any(child.type == "default" for child in statement.children)
    if exported and (value := statement.child_by_field_name("value")) is not None:
        source.exports["default"] = value
        if value.type == "identifier":
            source.renamed["default"] = source.of(value)
    if exported and declaration is None:
        _read_export(source, statement)
    if declaration is None:
        return
    if declaration.type == "ambient_declaration" and declaration.named_children:
        declaration = declaration.named_children[0]
    name = declaration.child_by_field_name("name")
    if declaration.type in DECLARATIONS and name is not None:
        source.types.setdefault(source.of(name), []).append(declaration)
        if is_default:
            source.renamed["default"] = source.of(name)
    for declarator in (
        declaration.named_children
        if declaration.type in ("lexical_declaration", "variable_declaration")
        else ()
    ):
        name, value = (
            declarator.child_by_field_name("name"),
            declarator.child_by_field_name("value"),
        )
        if name is not None and value is not None:
            source.values[source.of(name)] = value
            if exported:
                source.exports[source.of(name)] = value


def _read_import(source: Source, statement: Node) -> None:
    named = statement.child_by_field_name("source")
    if named is None:
        return
    module = source.of(named)[1:-1]
    for clause in all_of(statement, "import_clause"):
        for child in clause.named_children:
            if child.type == "identifier":
                source.imports[source.of(child)] = (module, "default")
            elif child.type == "namespace_import":
                source.imports[source.of(child.named_children[0])] = (module, "*")
        for specifier in all_of(clause, "import_specifier"):
            name, alias = (
                specifier.child_by_field_name("name"),
                specifier.child_by_field_name("alias"),
            )
            if name is not None:
                source.imports[source.of(alias or name)] = (module, source.of(name))


def _read_export(source: Source, statement: Node) -> None:
    """`export { a as b }`, `export { a } from "./there"`, `export * from "./there"`."""
    named = statement.child_by_field_name("source")
    module = source.of(named)[1:-1] if named is not None else None
    specifiers = list(all_of(statement, "export_specifier"))
    for specifier in specifiers:
        name, alias = specifier.child_by_field_name("name"), specifier.child_by_field_name("alias")
        if name is None:
            continue
        outside, inside = source.of(alias or name), source.of(name)
        if module is not None:
            inside = f"\0{outside}"  # no name of the file's own
            source.imports[inside] = (module, source.of(name))
        source.exports[outside] = name
        source.renamed[outside] = inside
    if (
        module is not None
        and not specifiers
        and any(child.type == "*" for child in statement.children)
    ):
        source.everything_of.append(module)


def all_of(node: Node, kind: str) -> Iterator[Node]:
    """Every node of a kind, outermost first."""
    waiting = [node]
    while waiting:
        here = waiting.pop()
        if here.type == kind:
            yield here
        waiting.extend(reversed(here.named_children))


def is_type(text: str) -> bool:
    """Whether a text is one type of TypeScript, and nothing besides: it may be put into a file."""
    root = Parser(_GRAMMARS[False]).parse(f"type T = {text};".encode(errors="replace")).root_node
    (first, *more) = root.named_children or [root]
    return not root.has_error and first.type == "type_alias_declaration" and not more


def is_literal(node: Node) -> bool:
    return node.type in ("string", "number") or (
        node.type == "unary_expression" and node.named_children[-1].type == "number"
    )


def asserted_type(value: Node) -> Node | None:
    """The type of `x as T`, `<T>x`, with or without brackets."""
    while value.type in ("parenthesized_expression", "satisfies_expression"):
        value = value.named_children[0]
    if value.type == "as_expression":
        return (
            value.named_children[-1]
            if value.named_children[-1].type != "const" and len(value.named_children) > 1
            else None
        )
    if value.type == "type_assertion":
        return next(
            (
                child
                for argument in value.named_children
                if argument.type == "type_arguments"
                for child in argument.named_children
            ),
            None,
        )
    return None
