"""`machinehub types`: a file that gives an app its machine's URL and types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from machinehub.cli import shapes
from machinehub.cli.common import (
    DEFAULT_SERVER,
    FAILED,
    Hub,
    MachineArgument,
    Refused,
    Server,
    TokenOption,
    fail,
    path_part,
    plain,
    progress,
)

if TYPE_CHECKING:
    from machinehub.cli.typescript import Said

SESSIONS_SEEN: Final = 20
"""Sessions whose contexts are looked at, when the machine says no types."""
_KEYS: Final = ("context", "events", "tags", "output", "emitted", "input")
INITIAL_BYTES_MAX: Final = 16 * 1024


def register(app: typer.Typer) -> None:
    app.command("types")(types_command)


def types_command(
    machine: MachineArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write; stdout without it."),
    ] = None,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Write TypeScript for clients: the machine's URL, and the types of its events, context, tags,
    states and output.
    """
    hub = Hub(server, token)
    path = hub.machine_path(machine)
    about = hub.read(path)
    version = about.get("version")
    if version is None:
        fail(f"{about['name']} has no active version", FAILED)
    number = version["number"]
    definition = hub.read(f"{path}/versions/{number}")["definition"]
    files = hub.read(f"{path}/versions/{number}/files")
    said = types_of(files["files"], files["entry"], (output or Path()).resolve().parent)
    text = typescript(about, number, definition, said, lambda: contexts(hub, path, number))
    for unknown in dict.fromkeys(said.unknown) if said else ():
        progress.print(
            (
                f"[yellow]note:[/yellow] {plain(unknown)} is only known to a compiler, or to "
                "another package: it is left out (with `typescript` and `xstate` in the "
                "project's node_modules, its compiler is asked)"
            ),
            soft_wrap=True,
        )
    if output is None:
        print(text, end="")
        return
    try:
        unchanged = output.exists() and output.read_text(encoding="utf-8") == text
        if not unchanged:  # whoever watches the file hears of changes only
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(text, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{output}: {error}", FAILED)
    progress.print(
        f"{output}: {'unchanged' if unchanged else 'written'}, {about['name']} version {number}",
        markup=False,
    )
    if not unchanged:
        client = f"{hub.server}/assets/machinehub-client.tgz"
        progress.print(f"what it imports: npm install {client}", style="dim", markup=False)


def types_of(files: dict[str, str], entry: str, folder: Path) -> Said | None:
    """What the machine says of its types: as the compiler of `folder`'s project sees them, else as
    they are written.
    """
    from machinehub.cli.compiler import types_compiled
    from machinehub.cli.typescript import types_said

    return types_compiled(files, entry, folder) or types_said(files, entry)


def contexts(hub: Hub, path: str, number: int) -> list[Any]:
    """Contexts of sessions of this version."""
    found: list[Any] = []
    for session in hub.items(path + "/sessions"):
        if session["version"] != number:
            continue
        try:
            found.append(
                hub.read(f"{path}/sessions/{path_part(session['id'])}")["snapshot"]["context"]
            )
        except (Refused, LookupError, TypeError):  # it was deleted meanwhile
            continue
        if len(found) == SESSIONS_SEEN:
            break
    return found


def typescript(
    about: dict[str, Any], number: int, definition: dict[str, Any], said: Said | None, seen: Any
) -> str:
    """The file. What the machine says of its types comes first, then what can be told without."""
    known = definition.get("context")
    context = (
        "unknown"
        if said and said.says_context
        else shapes.observed([*([known] if known is not None else []), *seen()])
    )
    fallback = {
        "context": context,
        "events": shapes.events(definition),
        "tags": shapes.tags(definition),
        "output": "unknown",
        "emitted": "{ type: string; [key: string]: unknown }",
        "input": "unknown",
    }
    types = {
        key: f"Or<Said, {json.dumps(key)}, {fallback[key]}>" if said else fallback[key]
        for key in _KEYS
    }
    if definition.get("view"):
        # What clients get is the view's, of which only its author's compiler knows the type.
        types |= {"context": "unknown", "output": "unknown", "emitted": fallback["emitted"]}
    initial: dict[str, Any] = {"value": shapes.initial_value(definition)}
    if known is not None and len(json.dumps(known)) <= INITIAL_BYTES_MAX:
        initial["context"] = known
    return "\n".join(_lines(about, number, definition, said, types, initial))


def _lines(
    about: dict[str, Any],
    number: int,
    definition: dict[str, Any],
    said: Said | None,
    types: dict[str, str],
    initial: dict[str, Any],
) -> list[str]:
    """The file, line by line. `types` are TypeScript by key of `Types`."""
    return [
        (
            f"// Written by `machinehub types {_comment(about['name'])}` for version {number}. "
            "Do not edit: write it again when the machine changes."
        ),
        "",
        'import type { ClientEvent, Json, Machine } from "@machinehub/client";',
        "",
        *(part for namespace in (said.namespaces if said else []) for part in (namespace, "")),
        *(
            [
                f"type Said = {said.type};",
                (
                    "type Or<T, K extends string, Else> = K extends keyof T ? (unknown extends "
                    "T[K] ? Else : T[K]) : Else;"
                ),
                "",
            ]
            if said
            else []
        ),
        "export interface Types {",
        f"  event: ClientEvent<{types['events']}>;",
        f"  context: Json<{types['context']}>;",
        f"  value: {shapes.state_value(definition['root'])};",
        f"  tag: {types['tags']};",
        f"  output: Json<{types['output']}>;",
        f"  emitted: {types['emitted']};",
        f"  input: {types['input']};",
        "}",
        "",
        "/** Who sends events, and who sees the session: for `access` and `view`. */",
        f"export type Role = {_roles(definition)};",
        "export interface Member {",
        "  readonly id: string;",
        "  readonly user?: string;",
        "  readonly roles: readonly Role[];",
        "  readonly claims?: { readonly [name: string]: unknown };",
        "}",
        "",
        f"export const url = {shapes.quoted(about['url'])};",
        (
            f"export const machine: Machine<Types> = {{ id: {shapes.quoted(definition['id'])}, "
            f"initial: {json.dumps(initial, sort_keys=True)} as never }};"
        ),
        "export default { url, machine };",
        "",
    ]


def _roles(definition: dict[str, Any]) -> str:
    """Those that the machine's access table names, of which a token may have more."""
    names = {role for rule in definition.get("rules", []) for role in rule.get("roles") or []}
    return " | ".join(shapes.quoted(name) for name in sorted(names)) or "string"


def _comment(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
