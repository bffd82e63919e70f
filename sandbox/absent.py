"""Node's own modules, which are not in machines. Packages import them all the same, often for what
a machine never comes to: an import stays as it is, and what uses it throws
(guest/prelude/modules.ts).

Decides: which names mean them, and what is said of a bundle that imports one.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Final

from sandbox.protocol.messages import BuildMessage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BARE: Final = (
    "assert async_hooks buffer child_process cluster console constants crypto dgram "
    "diagnostics_channel dns domain events fs http http2 https inspector module net os path "
    "perf_hooks process punycode querystring readline repl stream string_decoder timers tls tty "
    "url util v8 vm wasi worker_threads zlib"
)
"""Those that may be imported without `node:`, of which npm has namesakes."""
HINTS: Final = {
    "nanoid": "nanoid/non-secure works",
    "uuid": "uuid 9 and newer work",
    "crypto-js": "crypto.getRandomValues and crypto.randomUUID are there",
}
"""By package: what to do instead."""
_REQUIRED: Final = re.compile(r'require\("(node:[^"]+)"\)')
_IMPORTING: Final = re.compile(r"\b(?:from|import|require)\s{0,20}\(?\s{0,20}$")
BEFORE_CHARS: Final = 60
WARNINGS_MAX: Final = 50
_PACKAGE: Final = re.compile(r"(?:.*/)?node_modules/((?:@[^/]+/)?[^/]+)/")


def options(packages: Iterable[str]) -> list[str]:
    """What makes esbuild leave imports of them alone; `packages` are those that there are, which
    come first.
    """
    there = set(packages)
    aliases = [f"--alias:{name}=node:{name}" for name in BARE.split() if name not in there]
    return ["--external:node:*", *aliases]


def packages_of(paths: Iterable[str]) -> set[str]:
    """The npm packages that files belong to, and that every file finds: those at the top."""
    tops = (re.match(r"node_modules/((?:@[^/]+/)?[^/]+)/", path) for path in paths)
    return {found[1] for found in tops if found}


def warnings_of(script: str, files: dict[str, str]) -> list[BuildMessage]:
    """One for each import of such a module by a file that is in the bundle `script`."""
    known = {f"node:{name}" for name in BARE.split()}
    modules = sorted({each for each in _REQUIRED.findall(script) if each.split("/")[0] in known})
    found = (
        BuildMessage(_text(path, module), path, *place)
        for module in modules
        for path in sorted(files)
        for place in _imports(files[path], module)
    )
    return list(islice(found, WARNINGS_MAX))


def _text(path: str, module: str) -> str:
    package = _PACKAGE.match(path)
    who = package[1] if package else "this file"
    hint = f"; {HINTS[who]}" if who in HINTS else ""
    return f"{who} imports {module}, which is not in machines: what uses it throws{hint}"


def _imports(text: str, module: str) -> Iterator[tuple[int, int]]:
    """(line, column), from 1, of the first import of `module`."""
    name = module.removeprefix("node:")
    quoted = [f"{quote}{prefix}{name}{quote}" for quote in "\"'" for prefix in ("", "node:")]
    for at in sorted(at for text_ in quoted if (at := text.find(text_)) >= 0):
        # What stands before it is looked at backwards, and not far.
        if (found := _IMPORTING.search(text[max(0, at - BEFORE_CHARS) : at])) is not None:
            start = max(0, at - BEFORE_CHARS) + found.start()
            before = text[:start]
            yield before.count("\n") + 1, start - (before.rfind("\n") + 1) + 1
            return
