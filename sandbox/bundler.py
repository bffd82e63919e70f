"""The bundler: esbuild, itself a WASM module, over a directory that holds nothing but the upload.

Decides: which files may be entries, how a path is spelled, how esbuild is called and what its
messages mean. Does not know: machines; what it returns is one CommonJS script in which only
`xstate` is left to import.
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox import absent
from sandbox.forge import BuildError
from sandbox.protocol.messages import BuildMessage
from sandbox.sourcemap import SourceMap
from sandbox.traps import Trap

if TYPE_CHECKING:
    from sandbox.engine import Engine, Module

ENTRY_SUFFIXES: Final = (".ts", ".tsx", ".mts", ".cts", ".js", ".jsx", ".mjs", ".cjs", ".json")
ESBUILD_MEMORY_BYTES: Final = 512 * 1024 * 1024
ESBUILD_CPU_S: Final = 5.0
"""For bundling 8 MiB of source; what a machine does when it is loaded is limited separately."""
_PLACE = re.compile(r"^ {4}(?P<file>[^\n]*?):(?P<line>\d+):(?P<column>\d+):$")
_OPTIONS: Final = (
    "--bundle",
    "--format=cjs",
    "--platform=neutral",
    "--target=es2023",
    "--charset=utf8",
    # What is written for browsers is nearest to what a machine finds (docs/npm.md).
    "--main-fields=browser,module,main",
    "--conditions=browser,import,module,default",
    "--external:xstate",
    "--external:xstate/*",
    "--sourcemap=inline",
    "--sources-content=false",
    "--color=false",
    "--log-limit=20",
    "--log-level=warning",
    "--tree-shaking=true",
    '--define:process.env.NODE_ENV="production"',
    "--define:global=globalThis",
)
CONFIG_KEYS: Final = frozenset(
    ["initial", "states", "on", "always", "after", "entry", "exit", "invoke", "context", "output"]
)
STATE_TYPES: Final = ("atomic", "compound", "parallel", "final")
"""A config has one of those keys, or says that it is one of these: or it is some other JSON."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The script, and the way back from its lines to the user's."""

    script: str
    source_map: SourceMap | None
    warnings: list[BuildMessage]


def check_path(path: str) -> None:
    """Raises `BuildError` for anything but a plain relative path: it could lead elsewhere."""
    parts = PurePosixPath(path).parts
    # Stars are patterns to esbuild, and what follows "?" or "#" lets one file count as many.
    bad = (
        not path
        or len(path) > 512
        or any(char in path for char in "*?#")
        or path.startswith("/")
        or "\\" in path
        or "\0" in path
        or ".." in parts
        or str(PurePosixPath(path)) != path
    )
    if bad or any(len(part.encode("utf-8", "replace")) > 255 for part in parts):
        raise BuildError(
            "invalid_path",
            [BuildMessage(f"{path[:200]!r} is not a relative path inside the upload")],
        )


def bundle(engine: Engine, esbuild: Module, entry: str, files: dict[str, str]) -> Bundle:
    """Bundles `entry` with what it imports from `files`. Raises `BuildError`."""
    for path in files:
        check_path(path)
    if entry not in files:
        raise BuildError(
            "no_entry", [BuildMessage(f"the entry {entry[:200]!r} is not among the uploaded files")]
        )
    if not entry.endswith(ENTRY_SUFFIXES):
        raise BuildError(
            "invalid_entry",
            [
                BuildMessage(
                    f"a machine file ends in one of {', '.join(ENTRY_SUFFIXES)}", entry[:200]
                )
            ],
        )
    if entry.endswith(".json"):
        return _bundle_config(entry, files[entry])
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for path, content in files.items():
            target = root / path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.encode("utf-8", "replace"))
            except OSError as error:  # "a" and "a/b" in one upload
                raise BuildError(
                    "invalid_path",
                    [
                        BuildMessage(
                            f"{path[:200]!r} cannot stand beside the other files ({error.strerror})"
                        )
                    ],
                ) from None
        more = absent.options(absent.packages_of(files))
        script, messages = _run(engine, esbuild, entry, root, *more)
    text, source_map = _split_source_map(script)
    warnings = [*_said(messages, "▲ [WARNING] "), *absent.warnings_of(text, files)]
    return Bundle(text, source_map, warnings)


def inputs_of(engine: Engine, esbuild: Module, entry: str, root: Path) -> list[str]:
    """The files below `root` that a bundle of `entry` would be made of, by their paths there.

    For the CLI, over the user's own folder, in which nothing is written. Raises `BuildError`.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        options = ("--outfile=/.output/out.js", "--metafile=/.output/meta.json")
        packages = (each.name for each in (root / "node_modules").glob("*"))
        more = absent.options(packages)
        _run(engine, esbuild, entry, root, *options, *more, output=output)
        meta = json.loads((output / "meta.json").read_text())
        return sorted(meta["inputs"])


def _run(
    engine: Engine,
    esbuild: Module,
    entry: str,
    root: Path,
    *more: str,
    output: Path | None = None,
) -> tuple[str, str]:
    """What esbuild writes to stdout and stderr for a bundle of `entry`. Raises `BuildError`."""
    argv = ["esbuild", f"/{entry}", *_OPTIONS, *more]
    try:
        code, out, err = engine.run_wasi(
            esbuild,
            argv,
            root,
            cpu_s=ESBUILD_CPU_S,
            memory_bytes_max=ESBUILD_MEMORY_BYTES,
            output=output,
        )
    except Trap as trap:
        raise BuildError(
            "bundle_failed", [BuildMessage(f"the bundler stopped: {trap.message}", entry)]
        ) from None
    messages = err.decode("utf-8", "replace")
    if code:
        raise BuildError("bundle_failed", _errors(messages))
    return out.decode("utf-8", "replace"), messages


def _bundle_config(entry: str, text: str) -> Bundle:
    """A .json entry is a machine config without code."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        line, column = (
            (error.lineno, error.colno) if isinstance(error, json.JSONDecodeError) else (None, None)
        )
        raise BuildError(
            "bundle_failed", [BuildMessage(f"not JSON: {error}", entry, line, column)]
        ) from None
    if not isinstance(config, dict):
        raise BuildError(
            "bundle_failed", [BuildMessage("a machine config is a JSON object", entry, 1, 1)]
        )
    # JSON is not quite JavaScript: __proto__ would set the prototype. JSON.parse of a string
    # literal keeps it data.
    if CONFIG_KEYS.isdisjoint(config) and config.get("type") not in STATE_TYPES:
        raise BuildError(
            "no_machine",
            [
                BuildMessage(
                    f"this is no machine: a config has {', '.join(sorted(CONFIG_KEYS))}",
                    entry,
                    1,
                    1,
                )
            ],
        )
    literal = json.dumps(json.dumps(config))
    return Bundle(
        f'module.exports={{default:require("xstate").createMachine(JSON.parse({literal}))}};',
        None,
        [],
    )


def _errors(messages: str) -> list[BuildMessage]:
    return _said(messages, "✘ [ERROR] ") or [
        BuildMessage(messages.strip()[:1000] or "the bundler failed without a message")
    ]


def _said(messages: str, mark: str) -> list[BuildMessage]:
    """esbuild's printed messages that begin with `mark`. A message's place, when it has one, is the
    indented line behind it.
    """
    said: list[BuildMessage] = []
    is_open = False
    for line in messages.splitlines():
        if line.startswith(("✘ [ERROR] ", "▲ [WARNING] ")):
            is_open = line.startswith(mark)
            if is_open:
                said.append(BuildMessage(line.removeprefix(mark).removesuffix(" [plugin]")))
        elif is_open and (place := _PLACE.match(line)):
            is_open = False
            said[-1] = BuildMessage(
                said[-1].message, place["file"], int(place["line"]), int(place["column"]) + 1
            )
    return said


_MAP_COMMENT: Final = "//# sourceMappingURL=data:application/json;base64,"


def _split_source_map(script: str) -> tuple[str, SourceMap | None]:
    text, found, rest = script.rpartition(_MAP_COMMENT)
    if not found:
        return script, None
    return text, msgspec.json.decode(base64.b64decode(rest.strip()), type=SourceMap)
