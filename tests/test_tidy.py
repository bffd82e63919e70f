"""Our own source: which way imports go, what stands in one place only, how large things may
grow.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.core
SOURCES = sorted(
    [
        *(ROOT / "machinehub").rglob("*.py"),
        *(ROOT / "sandbox").glob("*.py"),
        *(ROOT / "sandbox" / "protocol").glob("*.py"),
    ]
)
LAYERS = [
    {"cli"},
    {"server"},
    {"app", "wiring"},
    {"control", "protocols", "cluster"},
    {"edge", "effects", "web", "workers", "session/run"},
    {"store", "egress"},
    {"session/decide", "session/messages", "session/port", "session/versions", "settings"},
    {
        "allowance",
        "calendar",
        "capacity",
        "clock",
        "closecodes",
        "effect",
        "errors",
        "ids",
        "limits",
        "logging",
        "logs",
        "metrics",
        "model",
        "paths",
        "principal",
        "rates",
        "tasks",
    },
]
"""The folders and files of machinehub, from the top: each imports from its own layer and those
below, and never sideways in a circle. docs/architecture.md draws them.
"""
FILE_LINES_MAX = 490
FUNCTION_LINES_MAX = 60
ONLY_IN = {
    "wasmtime": {"sandbox/engine.py"},
    # Time, chance and ids come from one module; a worker process measures what its turns cost.
    **{name: {"machinehub/clock.py"} for name in ("random", "secrets", "uuid")},
    "datetime": {"machinehub/clock.py", "machinehub/calendar.py"},  # time zones
    "time": {"machinehub/clock.py", "sandbox"},
    "sqlalchemy": {"machinehub/store", "machinehub/cli/serve.py"},
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> set[str]:
    """The modules that a file imports, those for type checkers only among them."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_files() -> None:
    found = [f"{name(path)}: {wrong}" for path in SOURCES for wrong in wrongs_of(path)]
    assert not found, "\n".join(found)


def wrongs_of(path: Path) -> Iterator[str]:
    found = imports(path)
    here = name(path)
    for module in found:
        if here.startswith("sandbox/") and module.split(".")[0] == "machinehub":
            yield "sandbox knows nothing of machinehub"
        if here.startswith("machinehub/") and re.match(r"sandbox\.(?!protocol)", module):
            yield "machinehub knows sandbox by its protocol"
    for module, places in ONLY_IN.items():
        if any(name_.split(".")[0] == module for name_ in found) and not any(
            here == place or here.startswith(place + "/") for place in places
        ):
            yield f"{module} is imported in {sorted(places)} only"
    lines = path.read_text().splitlines()
    if len(lines) > FILE_LINES_MAX:
        yield "is it one room or two?"
    for node in ast.walk(tree(path)):
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES_MAX
        ):
            yield f"{node.name} has outgrown its page"
    if path.name != "__init__.py" and not ast.get_docstring(tree(path)):
        yield "a file opens with what it decides"


def room(module: str) -> str:
    """The folder or file of machinehub that a module belongs to."""
    parts = module.split(".")
    return "/".join(parts[1:3]) if parts[1:2] == ["session"] else "".join(parts[1:2])


def layer(module: str) -> int | None:
    if not module.startswith("machinehub."):
        return None
    return next((index for index, names in enumerate(LAYERS) if room(module) in names), None)


def test_imports_go_one_way() -> None:
    upwards = []
    for path in SOURCES:
        if not path.is_relative_to(ROOT / "machinehub") or path.name == "__init__.py":
            continue
        mine = layer(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."))
        assert mine is not None, (
            f"{name(path)} is a new room: put it into LAYERS and into docs/architecture.md"
        )
        upwards += [
            f"{name(path)} imports {module}"
            for module in imports(path)
            if (theirs := layer(module)) is not None and theirs < mine
        ]
    assert not upwards, "\n".join(upwards)


def test_slow_tests_are_there() -> None:
    for named in (ROOT / "tests" / "slow.txt").read_text().split():
        path, _, test = named.partition("::")
        assert f"def {test}(" in (ROOT / path).read_text(), named


def test_there_are_no_circles() -> None:
    """Not even of imports that only type checkers follow."""
    modules = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
        for path in SOURCES
    }
    graph = {
        module: {found for found in imports(path) if found in modules and found != module}
        for module, path in modules.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for found in graph[module]:
                visit(found, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_nothing_is_skipped() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text()
        assert "pytest." + "skip" not in text, path
        assert "mark." + "xfail" not in text, path
