"""The user's files: which ones make up a machine, and `machinehub.toml`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from machinehub.calendar import CalendarEntry
from machinehub.cli.common import USAGE, Compiling, fail
from machinehub.effects.hooks import Webhook
from machinehub.egress.rules import EgressRules
from machinehub.limits import MachineLimits
from machinehub.model import MachineSettings
from machinehub.paths import cache_folder
from sandbox.protocol.access import Rule

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from machinehub.workers.pool import Listener, WorkerPool

CONFIG = "machinehub.toml"
LISTS = ("examples", "access", "cron", "webhooks")
T = TypeVar("T")
_IMPORT = re.compile(r"""(?:\bfrom\s*|\bimport\s*\(?\s*|\brequire\s*\(\s*)["']([^"']+)["']""")


@dataclass(frozen=True, slots=True)
class Project:
    """A machine's entry file and the folder that uploads are relative to."""

    root: Path
    entry: str
    name: str
    machine: MachineSettings
    """The table `[machine]` of machinehub.toml."""
    limits: MachineLimits
    """The table `[limits]`."""
    access: list[Rule]
    """`[[access]]`: who may send what."""
    cron: list[CalendarEntry]
    """`[[cron]]`: events at certain times."""
    egress: EgressRules
    """`[egress]`: what the machine may ask of the world."""
    webhooks: list[Webhook]
    """`[[webhooks]]`: by what the world tells it something."""
    private: bool | None
    """Whether sessions are for holders of connect tokens alone, where `private` says that."""
    examples: list[dict[str, Any]]
    """`[[examples]]`: events, with their values, that `check --budget` sends."""

    @property
    def entry_path(self) -> Path:
        return self.root / self.entry


def find_project(file: Path | None, name: str | None) -> Project:
    """The project of `file`, or of the `machinehub.toml` here. Ends the command when there is
    none.
    """
    config = read_config(Path.cwd() if file is None else file.resolve().parent)
    if file is None:
        main = config.get("main")
        if not isinstance(main, str):
            fail(f"name a machine file, or a `main` in {CONFIG}", USAGE)
        file = Path(config["_folder"]) / main
    file = file.resolve()
    if not file.is_file():
        fail(f"there is no file {file}", USAGE)
    root = next(
        (
            folder
            for folder in file.parents
            if any((folder / mark).exists() for mark in ("package.json", CONFIG, "node_modules"))
        ),
        file.parent,
    )
    _check_words(config)
    chosen = (
        name
        or config.get("name")
        or re.sub(r"[^A-Za-z0-9._-]+", "-", file.name.split(".")[0]).strip("-._")
        or "machine"
    )
    return Project(
        root,
        file.relative_to(root).as_posix(),
        chosen,
        _table(config, "machine", MachineSettings),
        _table(config, "limits", MachineLimits),
        _table(config, "access", list[Rule]),
        _table(config, "cron", list[CalendarEntry]),
        _table(config, "egress", EgressRules),
        _table(config, "webhooks", list[Webhook]),
        config.get("private"),
        _table(config, "examples", list[dict[str, Any]]),
    )


def _check_words(config: dict[str, Any]) -> None:
    """Ends the command for what means nothing in machinehub.toml, or not that."""
    if unknown := set(config) - {
        "name",
        "main",
        "machine",
        "limits",
        "access",
        "cron",
        "private",
        "examples",
        "egress",
        "webhooks",
        "_folder",
    }:
        fail(
            (
                f"{CONFIG} has {', '.join(sorted(unknown))}, which means nothing; there are name, "
                "main, private, [machine], [limits], [[access]], [[cron]], [egress], [[webhooks]]"
                " and [[examples]]"
            ),
            USAGE,
        )
    private = config.get("private")
    if private is not None and not isinstance(private, bool):
        fail(f"`private` in {CONFIG} is true or false", USAGE)
    if not isinstance(config.get("name", ""), str):
        fail(f"the `name` in {CONFIG} is not text", USAGE)


def _table(config: dict[str, Any], name: str, kind: type[T]) -> T:
    try:
        return msgspec.convert(config.get(name, [] if name in LISTS else {}), kind)
    except msgspec.ValidationError as error:
        fail(f"[{name}] in {CONFIG}: {error}", USAGE)


def read_config(folder: Path) -> dict[str, Any]:
    """The nearest `machinehub.toml` at or above `folder`; empty when there is none."""
    for candidate in (folder, *folder.parents):
        path = candidate / CONFIG
        if path.is_file():
            try:
                return tomllib.loads(path.read_text()) | {"_folder": str(candidate)}
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                fail(f"{path}: {error}", USAGE)
    return {}


def config_path(project: Project) -> Path:
    """Where a project's `machinehub.toml` is, or would be."""
    folders = (project.entry_path.parent, *project.entry_path.parents)
    return next(
        (folder / CONFIG for folder in folders if (folder / CONFIG).is_file()),
        project.root / CONFIG,
    )


def needs_bundler(project: Project) -> bool:
    """Whether the entry may import more than XState, so that only a bundler knows its files."""
    return project.entry_path.suffix != ".wasm" and not _imports_only_xstate(project.entry_path)


async def collect_files(project: Project, pool: WorkerPool | None) -> dict[str, str]:
    """The entry and everything it imports, npm packages included, by their paths below the root.

    `pool` has a forge that may read the root (see `forge`); None where `needs_bundler` says no.
    """
    paths = [project.entry]
    if project.entry_path.suffix == ".wasm":
        return {project.entry: _base64_of(project.entry_path)}
    if pool is not None and needs_bundler(project):
        paths = await pool.builds.inputs(root=str(project.root), entry=project.entry)
        # Folders inside a package may have a package.json, which says how their files are read.
        folders = {
            folder
            for path in paths
            if "node_modules/" in path
            for folder in PurePosixPath(path).parents
            if "node_modules" in folder.parts and folder.name != "node_modules"
        }
        paths += [
            f"{folder}/package.json"
            for folder in sorted(folders)
            if (project.root / folder / "package.json").is_file()
        ]
    paths += _type_only(project.root, paths)
    files: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        try:
            files[path] = (project.root / path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            fail(f"{path}: {error}")
    return files


def _type_only(root: Path, paths: list[str]) -> list[str]:
    """Files that only types are imported from, which a bundler never opens: `machinehub types`
    wants them.
    """
    from machinehub.cli.modules import candidates, modules_named

    found: list[str] = []
    known, waiting = (
        set(paths),
        [
            path
            for path in paths
            if "node_modules/" not in path and path.endswith((".ts", ".tsx", ".mts"))
        ],
    )
    for path in waiting:
        for module in modules_named(
            path, (root / path).read_text(encoding="utf-8", errors="replace")
        ):
            there = next(
                (
                    place
                    for place in candidates(path, module)
                    if not place.startswith("../") and (root / place).is_file()
                ),
                None,
            )
            if there is not None and there not in known and there.endswith((".ts", ".tsx", ".mts")):
                known.add(there)
                found.append(there)
                waiting.append(there)
    return found


@contextlib.asynccontextmanager
async def forge(root: Path, *, listener: Listener | None = None) -> AsyncIterator[WorkerPool]:
    """A forge of this command's own, which may read the files below `root`: builds need no hub.

    With a `listener` there is a session worker too, which counts fuel.
    """
    from machinehub.workers.pool import WorkerPool

    compiling = Compiling()
    pool = WorkerPool(
        count=0 if listener is None else 1,
        cache=cache_folder(),
        root=root,
        fuel=listener is not None,
        on_progress=compiling.begun,
    )
    try:
        try:
            await pool.start(listener)
        finally:
            compiling.ended()
        yield pool
    finally:
        await pool.stop()


class Files:
    """A project's files, collected again and again; a forge is started when it is first needed.

    It is never a hub's own forge, which stands behind walls that keep it from the user's files.
    """

    def __init__(self, project: Project) -> None:
        self.project = project
        self._open = contextlib.AsyncExitStack()
        self._pool: WorkerPool | None = None

    async def collect(self) -> dict[str, str]:
        """As `collect_files`."""
        if self._pool is None and needs_bundler(self.project):
            self._pool = await self._open.enter_async_context(forge(self.project.root))
        return await collect_files(self.project, self._pool)

    async def close(self) -> None:
        await self._open.aclose()


def gather(project: Project) -> dict[str, str]:
    """The project's files, once (see `Files`)."""

    async def run() -> dict[str, str]:
        files = Files(project)
        try:
            return await files.collect()
        finally:
            await files.close()

    return asyncio.run(run())


def _base64_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _imports_only_xstate(path: Path) -> bool:
    """Whether the file stands alone.

    A guess on the safe side: what looks like an import counts as one.
    """
    if path.suffix == ".json":
        return True
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        fail(f"{path} is not UTF-8 text")
    return all(name == "xstate" or name.startswith("xstate/") for name in _IMPORT.findall(text))
