"""`machinehub init`: a project that runs, from one of the templates.

A template is a folder of `templates/`: its files lie over those of its base (`plain` or `react`),
which lie over `common`. `template.json` says its base, its machine's file, and the example that the
machine is, where it is one.
"""

from __future__ import annotations

import json
import re
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from machinehub.cli.common import CONFLICT, fail, progress, say

_PACKAGED: Final = Path(__file__).parents[1]
_CHECKOUT: Final = Path(__file__).parents[2]
ROOT: Final = _PACKAGED if (_PACKAGED / "templates").is_dir() else _CHECKOUT
"""In a wheel templates and examples are part of the package, in a checkout they stand at the
top.
"""
RENAMED: Final = {"gitignore": ".gitignore"}
"""Files that would mean something to git or npm where they are kept."""
DESCRIPTION: Final = "template.json"


class Template(StrEnum):
    COUNTER = "counter"
    POKER = "poker"
    CHECKOUT = "checkout"
    GAME = "game"
    WORKFLOW = "workflow"


def register(app: typer.Typer) -> None:
    app.command("init")(init)


def init(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where; it is made if it is not there.")
    ] = Path(),
    template: Annotated[
        Template,
        typer.Option(
            "--template", "-t", help="poker, game and workflow need no Node; the others use React."
        ),
    ] = Template.POKER,
) -> None:
    """Make a project that runs: a machine, its tests, an app. Nothing that is there is changed."""
    directory = directory.resolve()
    name = re.sub(r"[^a-z0-9-]+", "-", directory.name.lower()).strip("-") or template.value
    files = files_of(template, name)
    if directory.exists() and not directory.is_dir():
        fail(f"{directory} is a file", CONFLICT)
    taken = sorted(path for path in files if (directory / path).exists())
    if taken:
        fail(f"there is {taken[0]} in {directory} already; nothing was written", CONFLICT)
    for path, content in files.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
    for path in sorted(files):
        progress.print(path, style="dim", markup=False)
    here = "" if directory == Path.cwd() else f"cd {shlex.quote(_shown(directory))} && "
    progress.print(f"{name} is made. Start it, and read {_shown(directory / 'README.md')}:")
    say(f"{here}machinehub dev")


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def files_of(template: str, name: str) -> dict[str, str]:
    """A project's files by their paths, with what stands in double braces filled in."""
    folder = ROOT / "templates" / template
    about: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    words = {"name": name} | {key: about[key] for key in ("about", "main", "test")}
    files: dict[str, str] = {}
    for layer in (ROOT / "templates" / "common", ROOT / "templates" / about["base"], folder):
        for path in sorted(layer.rglob("*")):
            if path.is_file() and path.name != DESCRIPTION:
                place = path.relative_to(layer)
                place = place.with_name(RENAMED.get(place.name, place.name))
                files[place.as_posix()] = path.read_text(encoding="utf-8")
    if "machine" in about:
        files[about["main"]] = (ROOT / "examples" / about["machine"]).read_text(encoding="utf-8")
    return {path: _filled(content, words) for path, content in files.items()}


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: words[found[1]], text)
