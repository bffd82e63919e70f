"""The types of a machine as the project's own TypeScript sees them: for `machinehub types`, where
reading the source is not enough (`z.infer`, generics, types of packages).

The compiler runs in a process of its own, over a copy of the deployed files in a folder of its own,
beside a link to the project's `node_modules`. It writes nothing: a file of ours gives each of the
machine's types, spelled out, to something that takes none, and what the compiler has against that
says what the type is. The files may be a stranger's: what is read of the answer must be a type.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from machinehub.cli.modules import is_type
from machinehub.cli.typescript import Said

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S: Final = 60
DEPTH: Final = 9
"""Levels of a type that are spelled out; a type that contains itself has no end."""
_CONFIGURES: Final = frozenset({"tsconfig.json", "jsconfig.json", "package.json"})
"""A stranger's configuration of the compiler: not for us."""
_PROBE: Final = "machinehub-types"
_SUFFIX: Final = re.compile(r"\.(?:ts|tsx|mts)$")
_SAYS: Final = re.compile(
    r"^(?P<file>[^\n(]+)\((?P<line>\d+),\d+\): error TS2322: "
    r"Type '(?P<type>.*)' is not assignable to type 'never'\.$",
    re.MULTILINE,
)
_KEYS: Final = ("context", "events", "output", "emitted", "input")
_OPTIONS: Final = [
    "--noEmit",
    "--pretty",
    "false",
    "--skipLibCheck",
    "--strict",
    "--target",
    "es2023",
    "--module",
    "esnext",
    "--moduleResolution",
    "bundler",
    "--jsx",
    "react-jsx",
    "--noErrorTruncation",
    "--allowImportingTsExtensions",
    "--esModuleInterop",
    "--resolveJsonModule",
]
_LEAF: Final = "machinehub:leaf"
_SAYS_NOTHING: Final = frozenset(
    ("any", "never", "unknown", "{}", "{} | null | undefined", "string", "{ type: string; }")
)
"""What XState's types are where an author gave none."""
_SOURCE: Final = """
import type {{
  AnyStateMachine, EmittedFrom, EventFrom, InputFrom, OutputFrom, SnapshotFrom,
}} from "xstate";
import * as source from {entry};

type Exports = typeof source;
type Some = AnyStateMachine;
type Machines = {{ [K in keyof Exports]: Exports[K] extends Some ? Exports[K] : never }};
type Machine = Exports extends {{ default: infer M extends Some }}
  ? M
  : Exports extends {{ machine: infer M extends Some }}
    ? M
    : Machines[keyof Machines];

// A compiler prints the name of a union that has one. With another member it is another union,
// and has none: that member is taken out of the text again.
type Digits<T extends number> = `${{T}}` extends `${{infer N extends number}}` ? N : T;
type Plain = string | number | boolean | bigint | symbol | null | undefined | Date;
type Spell<T, Depth extends unknown[]> = Depth["length"] extends {depth}
  ? unknown
  : T extends ReadonlyMap<any, any> | ReadonlySet<any>
    ? {{ [key: string]: never }}
  : T extends Plain
    ? (T extends string ? `${{T}}` : T extends number ? Digits<T> : T) | {leaf}
    : T extends (...given: never[]) => unknown
      ? never
      : T extends infer O
        ? {{ [K in keyof O]: Spell<O[K], [...Depth, unknown]> }}
        : never;
declare function spell<T>(): Spell<T, []>;

type Snapshot = SnapshotFrom<Machine>;
const context: never = spell<Snapshot extends {{ context: infer C }} ? C : unknown>();
const events: never = spell<EventFrom<Machine>>();
const output: never = spell<OutputFrom<Machine>>();
const emitted: never = spell<EmittedFrom<Machine>>();
const input: never = spell<InputFrom<Machine>>();
"""


def compiler_of(folder: Path) -> tuple[Path, Path] | None:
    """The `tsc` of the project that `folder` is in, and its `node_modules`; None where there is
    none, or no Node to run it.
    """
    if shutil.which("node") is None:
        return None
    for above in (folder, *folder.parents):
        modules = above / "node_modules"
        tsc = modules / "typescript" / "bin" / "tsc"
        if tsc.is_file() and (modules / "xstate").is_dir():
            return tsc, modules
    return None


def types_compiled(files: dict[str, str], entry: str, folder: Path) -> Said | None:
    """The types of the machine in `files`; None where there is no compiler in `folder`'s project,
    or it does not come to anything.
    """
    found = compiler_of(folder)
    if found is None or not _SUFFIX.search(entry):
        return None
    tsc, modules = found
    with tempfile.TemporaryDirectory() as place:
        root = Path(place).resolve()
        try:
            probe = _lay_out(root, files, entry, modules)
            done = subprocess.run(  # noqa: S603 - the project's own compiler, which the user installed
                ["node", str(tsc), *_OPTIONS, str(probe)],  # noqa: S607
                cwd=root,
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,  # errors in the project's own files do not matter here
            )
            said = done.stdout.decode()
        except (OSError, ValueError, subprocess.SubprocessError):
            return None
        types = dict(_read(said, root, probe))
    known = {key: text for key, text in types.items() if text not in _SAYS_NOTHING}
    if not known.keys() & {"events", "context"}:
        return None
    return Said(
        type="{ " + "; ".join(f"{key}: {text}" for key, text in known.items()) + " }",
        says_context="context" in known,
        namespaces=[],
        unknown=[],
    )


def _read(said: str, root: Path, probe: Path) -> Iterator[tuple[str, str]]:
    """The types by their keys, as far as the compiler says them."""
    lines = probe.read_text(encoding="utf-8").splitlines()
    for found in _SAYS.finditer(said):
        if (root / found["file"]).resolve() != probe:
            continue
        key = lines[int(found["line"]) - 1].removeprefix("const ").partition(":")[0]
        text = _tidy(found["type"])
        if key in _KEYS and is_type(text):
            yield key, text


def _tidy(text: str) -> str:
    """A printed type on one line, without the mark of leaves."""
    mark = re.escape(json.dumps(_LEAF))
    text = re.sub(rf" \| {mark}|{mark} \| ", "", text)
    return re.sub(r"\s*\n\s*", " ", text)


def _lay_out(root: Path, files: dict[str, str], entry: str, modules: Path) -> Path:
    """Writes the project's own files, and the one that names the types; returns that. Raises
    `OSError` and `ValueError` for paths that cannot be, or lead elsewhere.
    """
    (root / "node_modules").symlink_to(modules)
    for path, content in files.items():
        target = (root / path).resolve()
        if "node_modules/" in path or target.name in _CONFIGURES or not target.is_relative_to(root):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8", errors="replace")
    where = PurePosixPath(entry)
    probe = root / where.parent / f"{_PROBE}.ts"
    if "node_modules" in where.parts or not probe.resolve().is_relative_to(root):
        raise ValueError(entry)
    name = json.dumps("./" + _SUFFIX.sub("", where.name))
    text = _SOURCE.format(entry=name, depth=DEPTH, leaf=json.dumps(_LEAF))
    probe.write_text(text, encoding="utf-8")
    return probe
