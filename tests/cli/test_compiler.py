"""Types by a project's own TypeScript: releases with a compiler in JavaScript, and those without."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from machinehub.cli.compiler import types_compiled
from machinehub.cli.modules import is_type
from machinehub.cli.payloads import payloads_of
from machinehub.cli.typescript import types_said
from machinehub.model import PayloadField
from tests.cli.test_cli import run
from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Client

COMPILERS = {
    "in JavaScript": ROOT / "node_modules" / "typescript",
    "native": ROOT / "clients" / "js" / "node_modules" / "typescript",
}
SOURCE = """import { setup } from "xstate";
import { make, DECK } from "./lib";
import type { Page } from "./lib";
const item = make({ id: "x", when: new Date() });
enum Color { Red = "red", Blue = "blue" }
enum Level { Low, High = 7 }
type Item = typeof item;
export const machine = setup({
  types: {
    context: {} as { items: Item[]; color: Color; level: Level; page: Page<Item>; pair: [number, string] },
    events: {} as { type: "ADD"; item: Item; card: (typeof DECK)[number] } | { type: Color; sender: { id: string } },
    output: {} as { total: number },
    emitted: {} as { type: "toast"; text: string },
    input: {} as { start?: number },
    tags: {} as "busy" | "idle",
  },
}).createMachine({
  context: { items: [], color: Color.Red, level: Level.Low, page: { items: [], next: null }, pair: [1, "a"] },
});
"""
LIB = """export const make = <T extends object>(given: T) => ({ ...given, made: true as boolean });
export const DECK = [1, 2, "?"] as const;
export interface Page<T> { items: T[]; next: Page<T> | null }
"""
FILES = {"src/m.ts": SOURCE, "src/lib.ts": LIB}


@pytest.fixture(params=COMPILERS)
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    modules = tmp_path / "node_modules"
    modules.mkdir()
    (modules / "typescript").symlink_to(COMPILERS[request.param])
    (modules / "xstate").symlink_to(ROOT / "clients" / "js" / "node_modules" / "xstate")
    if not (modules / "xstate").exists():
        (modules / "xstate").unlink()
        (modules / "xstate").symlink_to(ROOT / "node_modules" / "xstate")
    (tmp_path / "src").mkdir()
    return tmp_path


def test_what_only_a_compiler_knows(project: Path) -> None:
    said = types_compiled(FILES, "src/m.ts", project / "src")
    assert said is not None
    text = said.type
    item = "{ id: string; when: Date; made: boolean; }"
    assert said.says_context
    assert "import(" not in text
    assert "machinehub:" not in text
    for part in (
        'color: "red" | "blue"',
        "level: 0 | 7",
        "pair: [number, string]",
        'type: "ADD"',
        "output: { total: number; }",
        'emitted: { type: "toast"; text: string; }',
        "input: { start?: number | undefined; }",
    ):
        assert part in text or part.replace('"red" | "blue"', '"blue" | "red"') in text, part
    assert item in text or "made: boolean; id: string; when: Date;" in text, text
    assert '1 | 2 | "?"' in text or '"?" | 1 | 2' in text


def test_without_a_compiler_the_source_is_read(tmp_path: Path) -> None:
    assert types_compiled(FILES, "src/m.ts", tmp_path) is None
    said = types_said(FILES, "src/m.ts")
    assert said is not None
    assert 'card: 1 | 2 | "?"' in said.type, "a list of literals needs no compiler"


def test_a_project_without_xstate_or_node_has_none(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "which", lambda _: None)
        assert types_compiled(FILES, "src/m.ts", project) is None
    (project / "node_modules" / "xstate").unlink()
    assert types_compiled(FILES, "src/m.ts", project) is None


def test_what_is_deployed_writes_nowhere_else(project: Path) -> None:
    outside = project / "outside.ts"
    hostile = {
        "src/m.ts": SOURCE,
        "src/lib.ts": LIB,
        "../outside.ts": "export {}",
        str(outside): "export {}",
        "src/../../outside.ts": "export {}",
        "node_modules/typescript/bin/tsc": "require('fs').writeFileSync('owned', '')",
        "tsconfig.json": '{"compilerOptions": {"outDir": "%s"}}' % (project / "owned"),
        "src/machinehub-types.ts": "export const events = 1;",
    }
    said = types_compiled(hostile, "src/m.ts", project)
    assert said is not None
    assert sorted(path.name for path in project.iterdir()) == ["node_modules", "src"]


def test_a_strangers_files_change_nothing_and_say_nothing_but_types(project: Path) -> None:
    mine = project / "src" / "mine.ts"
    mine.write_text("export const mine = 1;")
    declared = project / "src" / "mine.d.ts"
    declared.write_text("by hand")
    evil = "export declare const context: {n: number} };\nfetch('x'); type X = {;"
    hostile = FILES | {
        "src/m.ts": f'import type {{ mine }} from "{mine.with_suffix("")}";\n{SOURCE}',
        ".out/src/machinehub-types.d.ts": evil,
        "machinehub-types.d.ts": evil,
    }
    said = types_compiled(hostile, "src/m.ts", project)
    assert said is not None
    assert "fetch" not in said.type
    assert declared.read_text() == "by hand"
    for entry in ("node_modules/x/m.ts", str(project / "m.ts"), "../m.ts", "", "a\0.ts"):
        assert types_compiled({entry: SOURCE}, entry, project) is None, entry
    assert types_compiled(FILES | {"node_modules": "x"}, "src/m.ts", project) is not None
    assert types_compiled({"a": "", "a/b.ts": SOURCE}, "a/b.ts", project) is None
    assert sorted(path.name for path in project.rglob("machinehub-types*")) == []
    assert not (project / "node_modules" / "x").exists()


@pytest.mark.core
def test_a_type_is_one_type() -> None:
    assert is_type("{ a: number } | string")
    for text in ("{ a: number }; fetch('x')", "{ a: number", "", "x; type Y = 1", "1 }; {", "/*"):
        assert not is_type(text), text


async def test_the_command_asks_it(client: Client, project: Path) -> None:
    body = {"name": "compiled", "entry": "src/m.ts", "files": FILES}
    assert (await client.http.post("/api/v1/deployments", json=body)).status_code in (200, 201)
    done = await run("types", "compiled", "-o", "src/m.hub.ts", client=client, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "only known to a compiler" not in done.stderr
    assert "made: boolean" in (project / "src" / "m.hub.ts").read_text()
    again = await run("types", "compiled", "-o", "src/m.hub.ts", client=client, cwd=project)
    assert "unchanged" in again.stderr


@pytest.mark.core
def test_payloads_are_read_from_types() -> None:
    source = """import { setup } from "xstate"; import { DECK, type Join } from "./lib";
    type Sent = { sender: { id: string } };
    type Event = (Join & Sent) | ({ type: "VOTE"; card: (typeof DECK)[number]; note?: string | undefined } & Sent)
      | { type: "A" | "B"; on: boolean; size: "s" | "l"; where: { x: 1 } } | { type: "PLAIN" };
    export default setup({ types: { events: {} as Event } }).createMachine({});"""
    lib = """export const DECK = [1, "?"] as const; export interface Join { type: "JOIN"; name: string; age?: number }"""
    both = [
        PayloadField(name="on", kind="boolean"),
        PayloadField(name="size", kind="choice", values=["s", "l"]),
        PayloadField(name="where", kind="json"),
    ]
    assert payloads_of({"m.ts": source, "lib.ts": lib}, "m.ts") == {
        "JOIN": [
            PayloadField(name="name", kind="text"),
            PayloadField(name="age", kind="number", optional=True),
        ],
        "VOTE": [
            PayloadField(name="card", kind="choice", values=[1, "?"]),
            PayloadField(name="note", kind="text", optional=True),
        ],
        "A": both,
        "B": both,
    }
    assert payloads_of({"m.js": source}, "m.js") == {}
    endless = """import { setup } from "xstate"; type E = E & { type: "A" };
    export default setup({ types: {} as { events: E } }).createMachine({});"""
    assert payloads_of({"m.ts": endless}, "m.ts") == {}
    deep = "type A = B; type B = A; " + "type E = " + "(" * 300 + "A" + ")" * 300 + ";"
    hostile = deep + "export default setup({ types: {} as { events: E } }).createMachine({});"
    assert payloads_of({"m.ts": 'import { setup } from "xstate";' + hostile}, "m.ts") == {}
