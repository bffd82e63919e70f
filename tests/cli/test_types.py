"""`machinehub types`: what an app's compiler makes of the file. Checked with the real `tsc`."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from machinehub.cli import shapes
from machinehub.cli.types import typescript
from machinehub.cli.typescript import types_said
from tests.cli.test_cli import run
from tests.support import EXAMPLES, ROOT, Client

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {
    "compilerOptions": {
        "target": "es2022",
        "module": "esnext",
        "moduleResolution": "bundler",
        "lib": ["es2022", "dom"],
        "strict": True,
        "noEmit": True,
        "skipLibCheck": True,
        "types": [],
        "exactOptionalPropertyTypes": True,
        "noUncheckedIndexedAccess": True,
        "erasableSyntaxOnly": True,
        "verbatimModuleSyntax": True,
        "jsx": "react-jsx",
    },
    "include": ["*.ts", "*.tsx"],
}


async def tsc(folder: Path) -> str:
    """What the compiler has against the files in `folder`; empty for nothing."""
    (folder / "tsconfig.json").write_text(json.dumps(CONFIG))
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(ROOT / "node_modules")
    process = await asyncio.create_subprocess_exec(
        "node",
        # The compiler that the client is built with; the one at the top is the linter's.
        str(ROOT / "clients" / "js" / "node_modules" / "typescript" / "bin" / "tsc"),
        "-p",
        ".",
        "--preserveSymlinks",
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return output.decode()


async def generate(client: Client, machine: str, folder: Path, name: str = "m.hub.ts") -> str:
    done = await run("types", machine, "-o", str(folder / name), client=client)
    assert done.returncode == 0, done.stderr
    return done.stderr


async def deploy(client: Client, name: str, files: dict[str, str], entry: str) -> str:
    response = await client.http.post(
        "/api/v1/deployments", json={"name": name, "entry": entry, "files": files}
    )
    assert response.status_code == 201, response.text
    return name


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.ts")))
async def test_every_example_compiles(client: Client, tmp_path: Path, example: str) -> None:
    name = await deploy(
        client, f"types-{example[:-3]}", {example: (EXAMPLES / example).read_text()}, example
    )
    await generate(client, name, tmp_path)
    (tmp_path / "app.ts").write_text(
        'import { connect } from "@machinehub/client";\nimport hub from "./m.hub";\nconst store = '
        'connect({ ...hub, sessionId: "s" });\nstore.getSnapshot().value;\n// @ts-expect-error no '
        'machine takes this\nvoid store.send({ type: "no such event" });\n'
    )
    assert await tsc(tmp_path) == ""


async def test_a_wrong_event_is_a_compile_error(client: Client, tmp_path: Path) -> None:
    await generate(
        client,
        await deploy(
            client, "types-checkout2", {"m.ts": (EXAMPLES / "checkout.ts").read_text()}, "m.ts"
        ),
        tmp_path,
    )
    (tmp_path / "app.tsx").write_text("""
import { connect } from "@machinehub/client";
import { useMachine, useStatelyActor, useStore, useSelector } from "@machinehub/client/react";
import hub, { machine, url, type Types } from "./m.hub";
const store = connect({ url, sessionId: "s", machine });
const items: number = store.getSnapshot().context.items;
void store.send({ type: "ADDRESS", value: "x" });
// @ts-expect-error
void store.send({ type: "ADDRESS" });
// @ts-expect-error
void store.send({ type: "ADRESS", value: "x" });
// @ts-expect-error
const wrong: string = store.getSnapshot().context.items;
const receipt: string | undefined = store.getSnapshot().output?.receipt;
const value: Types["value"] = store.getSnapshot().value;
export function App() {
  const [state, send, { status, presence }] = useMachine({ url, sessionId: "s" }, { machine });
  const [sky, tell] = useStatelyActor({ url, sessionId: "s" }, hub);
  const items = useSelector(useStore({ url, sessionId: "s" }, { machine }), (state) => state.context.items);
  const n: number = items + sky.context.items;
  // @ts-expect-error
  tell?.({ type: "NOPE" });
  tell?.({ type: "ADD" });
  // @ts-expect-error
  state.can({ type: "NOPE" });
  return <button onClick={() => void send({ type: "ADD" })}>{state.context.address} {status} {presence.count} {n}</button>;
}
export { items, wrong, receipt, value };
""")
    assert await tsc(tmp_path) == ""


FILES = {
    "src/machine.ts": """
import { setup, type ActorRefFrom } from "xstate";
import type { Ev as MyEvent, Ctx } from "./types.js";
import * as lib from "some-lib";
type Or<T> = T | null; // a name that the file itself uses
const base = setup({ types: { context: {} as Ctx & { made: Date; ref: ActorRefFrom<typeof setup> }, events: <MyEvent>{}, tags: null as unknown as "busy" | "idle", output: ({} as Or<{ n: number }>), input: {} as lib.Thing } });
const machine = base.createMachine({ id: "x", initial: "a", states: { a: { initial: "b", states: { b: {}, c: {} }, on: { GO: "d" } }, d: { type: "parallel", states: { p: { initial: "q", states: { q: {}, r: {} } }, s: {} } }, h: { type: "history" } } });
export { machine };
""",
    "src/types.ts": """
export type { Ev } from "./events";
import { Level } from "./events";
export interface Ctx { level: Level; self?: Ctx; map: Record<string, Level>; notes: readonly string[] }
""",
    "src/events.ts": """
export enum Level { Low = "low", High = "high" }
type Base<K extends string> = { type: K; sender?: { id: string } };
export type Ev = Base<"GO"> | (Base<"SET"> & { level: Level }) | Base<"presence.joined"> & { count: number };
""",
}


async def test_types_are_followed_through_files(client: Client, tmp_path: Path) -> None:
    said = types_said(FILES, "src/machine.ts")
    assert said is not None
    assert "lib.Thing" in said.unknown
    files = FILES | {
        "src/machine.ts": FILES["src/machine.ts"].replace('import * as lib from "some-lib";', "")
    }
    await generate(client, await deploy(client, "types-files", files, "src/machine.ts"), tmp_path)
    (tmp_path / "app.ts").write_text("""
import { connect } from "@machinehub/client";
import hub from "./m.hub";
const store = connect({ ...hub, sessionId: "s" });
const state = store.getSnapshot();
void store.send({ type: "GO" });
void store.send({ type: "SET", level: state.context.level });
// @ts-expect-error the hub says who sends
void store.send({ type: "GO", sender: { id: "me" } });
// @ts-expect-error the hub says who comes
void store.send({ type: "presence.joined", count: 1 });
const made: string = state.context.made; // a Date, by the time it is here
state.matches("a"); state.matches({ a: "b" }); state.matches({ d: { p: "q" } }); state.matches({ d: "p" });
// @ts-expect-error
state.matches({ a: "q" });
// @ts-expect-error
state.matches("h");
state.hasTag("busy");
// @ts-expect-error
state.hasTag("bsy");
const deep: string | undefined = state.context.self?.notes[0];
export { made, deep };
""")
    assert await tsc(tmp_path) == ""


async def test_a_machine_without_types_is_observed(client: Client, tmp_path: Path) -> None:
    source = """
import { assign, createMachine } from "xstate";
export default createMachine({
  context: ({ input }) => ({ user: null, list: [], at: input?.at ?? 1, flag: true }),
  initial: "one", states: { one: { tags: "first", on: { NAME: { actions: assign({ user: ({ event }) => ({ name: event.name }), list: [1, "a"] }) }, "move.*": "two", "*": {} } }, two: {} },
});
"""
    name = await deploy(client, "types-plain", {"m.js": source}, "m.js")
    machine = (await client.http.get(f"/api/v1/machines/{name}")).json()["id"]
    await client.http.get(f"/{machine}/s1")
    await client.http.post(f"/{machine}/s2", json={"type": "NAME", "name": "Ann"})
    assert "written" in await generate(client, name, tmp_path)
    first = (tmp_path / "m.hub.ts").read_text()
    assert (
        "context: Json<{ at: number; flag: boolean; list: (number | string)[]; user: null | { "
        "name: string } }>;" in first
    )
    assert "unchanged" in await generate(client, name, tmp_path)
    assert (tmp_path / "m.hub.ts").read_text() == first
    (tmp_path / "app.ts").write_text("""
import { connect } from "@machinehub/client";
import hub from "./m.hub";
const store = connect({ ...hub, sessionId: "s" });
void store.send({ type: "NAME", name: "x" });
void store.send({ type: "move.up" });
const name: string | undefined = store.getSnapshot().context.user?.name;
store.getSnapshot().matches("one");
// @ts-expect-error
store.getSnapshot().matches("three");
export { name };
""")
    assert await tsc(tmp_path) == ""


async def test_hostile_names_stay_text(client: Client, tmp_path: Path) -> None:
    evil = '*/ process.exit(1); /* ${x} ` \\ "\n\u2028 </script>'
    source = (
        f'import {{ createMachine }} from "xstate"; export default createMachine({{ id: '
        f"{json.dumps(evil)}, context: {{ {json.dumps(evil)}: {json.dumps(evil)} }}, initial: "
        f"{json.dumps(evil)}, states: {{ {json.dumps(evil)}: {{ tags: {json.dumps(evil)}, on: {{ "
        f"{json.dumps(evil)}: {{}}, {json.dumps(evil + '.*')}: {{}}, __proto__: {{}} }} }}, "
        f"__proto__: {{}} }} }});"
    )
    await generate(client, await deploy(client, "types-evil", {"m.js": source}, "m.js"), tmp_path)
    (tmp_path / "app.ts").write_text(
        f'import hub from "./m.hub";\nimport {{ connect }} from "@machinehub/client";\nvoid '
        f'connect({{ ...hub, sessionId: "s" }}).send({{ type: {json.dumps(evil)} }});\n'
    )
    assert await tsc(tmp_path) == ""


async def test_what_cannot_be_is_said(client: Client, tmp_path: Path) -> None:
    assert (await run("types", "nosuchmachine", client=client)).returncode == 4
    await deploy(
        client,
        "types-bare",
        {"m.js": 'import { createMachine } from "xstate"; export default createMachine({});'},
        "m.js",
    )
    assert (await run("types", "types-bare", "-o", str(tmp_path), client=client)).returncode == 1
    assert "export const machine" in (await run("types", "types-bare", client=client)).stdout


@pytest.mark.core
@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([], "unknown"),
        ([None], "unknown"),
        ([1, None], "null | number"),
        ([[]], "unknown[]"),
        ([[1], ["a"]], "(number | string)[]"),
        ([{"a": 1}, {"b": True}], "{ a?: number; b?: boolean }"),
        ([{}], "{}"),
        ([{f"k{n}": n for n in range(40)}], "Record<string, number>"),
        ([{"a-b": [None]}], '{ "a-b": unknown[] }'),
    ],
)
def test_shapes(values: list[Any], type_: str) -> None:
    assert shapes.observed(values) == type_


@pytest.mark.core
@pytest.mark.parametrize(
    "source",
    [
        "",
        "export default 1",
        "export default setup({ types: 1 })",
        "export default setup({ types: {} as A })",
        "export default (" * 300,
        "const a = b; const b = a; export default a;",
        'import x from "./m"; export default x;',
        "type A = { a: A }; export default createMachine({ types: {} as A })",
        "\0\ufeff}{",
    ],
)
def test_any_source_can_be_read(source: str) -> None:
    types_said({"m.ts": source}, "m.ts")


DEFINITION = {"id": "m", "events": ["GO"], "root": {"id": "m", "key": "m", "type": "atomic"}}
OTHER = {
    "other.ts": (
        "export interface Base { b: number } export type Ev = { type: 'GO' }; export * from "
        "'./more'; export { Deep as Renamed } from './more'; export default interface Main { m: "
        "1 }"
    ),
    "more.ts": "export interface Deep { d: 'deep' }",
}
STYLES = [
    # what stands before the machine, its context, an expression of `ctx` that has to compile; None:
    # it is said that something is unknown
    (
        "interface Ctx { a: number } interface Ctx { b: string }",
        "Ctx",
        "ctx.a.toFixed() + ctx.b.length",
    ),
    (
        (
            "interface Own<T extends string = string> { v: T; f: { [K in T]?: K } } type K = 1; "
            "interface Ctx { o: Own<'x'>; k: K }"
        ),
        "Ctx",
        "ctx.o.f.x?.length ?? ctx.k",
    ),
    (
        'import type { Base } from "./other"; interface Ctx extends Base { a: string }',
        "Ctx",
        "ctx.b + ctx.a.length",
    ),
    (
        (
            'import type { EventObject } from "xstate"; interface Ctx extends EventObject { a: '
            "string }"
        ),
        "Ctx",
        "ctx.a.length",
    ),
    ('import type * as T from "./other";', "T.Base", "ctx.b.toFixed()"),
    (
        'import type { Renamed, Deep } from "./other";',
        "{ r: Renamed; d: Deep }",
        "ctx.r.d.length + ctx.d.d.length",
    ),
    ('import type Main from "./other";', "Main", "ctx.m.toFixed()"),
    (
        "type J = string | number | boolean | null | J[] | { [k: string]: J };",
        "{ j: J; s: string }",
        "[ctx.j, ctx.s.length]",
    ),
    (
        "enum Level { Low = 'low', High = 'high' } const enum N { A, B = 5 }",
        "{ l: Level; n: N; h: Level.High }",
        "`${ctx.l} ${ctx.h}`",
    ),
    ("const BASE = 1; enum K { A = BASE }", "{ k: K; s: string }", "ctx.s.length"),
    (
        "class User { name = '' } class Node<T> { v!: T }",
        "{ u: User; n: Node<1>; s: string }",
        "ctx.s.length",
    ),
    (
        "const schema = {}; type Infer<T> = T;",
        "{ i: Infer<typeof schema>; r: ReturnType<typeof String>; s: string }",
        "ctx.s.length",
    ),
    (
        "const L = ['a', 'b'] as const;",
        "{ l: (typeof L)[number]; k: keyof typeof L; s: string }",
        "ctx.s.length",
    ),
    (
        "const KEY = 'k'; declare const sym: unique symbol;",
        "{ [KEY]: number; [sym]?: true; s: string }",
        "ctx.s.length",
    ),
    (
        "interface Outer { type: 'x'; in: { deep: 1 } }",
        "{ i: Outer['in']; p: Pick<Outer, 'type'>; u: Buffer; s: string }",
        "ctx.i.deep + ctx.s.length",
    ),
    (
        (
            "type Cond<T> = T extends (infer U)[] ? U : never; type M = { readonly [P in 'a' | "
            "'b']-?: P };"
        ),
        "{ c: Cond<string[]>; m: M }",
        "ctx.c.length + ctx.m.a.length",
    ),
    (
        "type Fn = <T>(a: T) => T; interface I { f<T>(a: T): void; s: string }",
        "{ i: I; g: Fn; s: string }",
        "ctx.s.length",
    ),
    ("type T1 = { a: 1 } /* } comment */ & { b: 2 } // more", "T1", "ctx.a + ctx.b"),
    ("namespace NS { export interface X { a: 1 } }", "{ x: NS.X; s: string }", "ctx.s.length"),
    ("", 'import("./other").Base & { s: string }', "1"),
    (
        "",
        (
            "{ d: Date; t: [a: string, b?: number]; s: Set<string>; u: string | undefined; tpl: "
            "`a-${number}` }"
        ),
        "ctx.d.length + ctx.t[0].length + ctx.tpl.length",
    ),
    ("interface Tree { kids: Tree[]; up?: Tree }", "Tree", "ctx.kids[0]?.up?.kids.length"),
    (
        (
            "type Types = 1; type Said = 2; type Or = 3; type Machine = 4; type Json = 5; type "
            "url = 6;"
        ),
        "{ a: Types; b: Said; c: Or; d: Machine; e: Json; f: url }",
        "ctx.a + ctx.b + ctx.f",
    ),
    (
        "type Big = " + " | ".join(f"'v{n}'" for n in range(3000)) + ";",
        "{ b: Big }",
        "ctx.b.length",
    ),
    (
        " ".join(f"interface I{n} {{ next?: I{n + 1} }}" for n in range(600))
        + " interface I600 { end: 1 }",
        "I0",
        "ctx.next?.next",
    ),
]


async def test_what_people_write_compiles(tmp_path: Path) -> None:
    """Whatever the source says, the file compiles, and what it could say is there."""
    for number, (before, context, use) in enumerate(STYLES):
        source = (
            f"{before}\nimport {{ setup }} from 'xstate'; import type {{ Ev }} from './other'; "
            f"import type {{ AnyEventObject }} from 'xstate';\nexport const machine = setup({{ "
            f"types: {{ context: {{}} as {context}, events: {{}} as Ev | AnyEventObject }} "
            f"}}).createMachine({{}});"
        )
        said = types_said({"m.ts": source, **OTHER}, "m.ts")
        assert said is not None, before
        (tmp_path / f"m{number}.hub.ts").write_text(
            typescript({"name": "m", "url": "http://h/m"}, 1, DEFINITION, said, list)
        )
        (tmp_path / f"app{number}.ts").write_text(
            f'import {{ connect }} from "@machinehub/client";\nimport hub from '
            f'"./m{number}.hub";\nconst store = connect({{ ...hub, sessionId: "s" }});\nconst ctx '
            f"= store.getSnapshot().context;\nexport const used = {use};\nvoid store.send({{ "
            f'type: "GO" }});\n// @ts-expect-error\nvoid store.send({{ type: "NO" }});\n'
        )
    assert await tsc(tmp_path) == ""


@pytest.mark.core
@pytest.mark.parametrize(
    "machine",
    [
        "createMachine({ types: T as any, invoke: { src: other } })",
        "createMachine({ entry: () => { const x = other; return [1].map((other) => other); } })",
        "createMachine({ invoke: { src: other.createMachine({}) } })",
    ],
)
def test_another_machines_types_are_not_taken(machine: str) -> None:
    said = types_said(
        {
            "m.ts": (
                f"const T = 1; const other = setup({{ types: {{ context: {{}} as {{ wrong: 1 }} "
                f"}} }}).createMachine({{}}); export default {machine};"
            )
        },
        "m.ts",
    )
    assert said is None or "wrong" not in said.type


@pytest.mark.core
@pytest.mark.parametrize(
    "source",
    [
        (
            "import { setup as mk } from 'xstate'; export default mk({ types: {} as { context: { "
            "right: 1 } } }).createMachine({})"
        ),
        (
            "const types = { context: {} as { right: 1 } }; export default setup({ types "
            "}).createMachine({})"
        ),
        (
            "const impl = { types: { context: {} as { right: 1 } } } satisfies object; const s = "
            "setup(impl); const m = s.createMachine({}); export { m as default }"
        ),
        (
            "export var machine = createMachine({ types: ({} as { context: { right: 1 } }) "
            "}).provide({})"
        ),
        (
            "const m = (createMachine({ types: <{ context: { right: 1 } }>{} }) as any)!; export "
            "default m;"
        ),
        "export { door as default } from './door'",
        "export * from './door'",
        "import * as d from './door'; import { door } from './door'; export default door",
    ],
)
def test_the_machines_own_types_are_found(source: str) -> None:
    said = types_said(
        {
            "m.ts": source,
            "door.ts": "export const door = createMachine({ types: {} as { context: { right: 1 } } })",
        },
        "m.ts",
    )
    assert said is not None
    assert "right: 1" in said.type


@pytest.mark.core
def test_constants_that_name_each_other_are_no_maze() -> None:
    names = [f"v{n}" for n in range(60)]
    source = (
        "".join(f"const {name} = () => [{', '.join(names)}];" for name in names)
        + "export default createMachine({ entry: v0 });"
    )
    assert types_said({"m.ts": source}, "m.ts") is None


async def test_types_alone_are_uploaded_too(client: Client, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "m.ts").write_text(
        'import { setup } from "xstate"; import type { Ctx } from "./types"; export default '
        "setup({ types: { context: {} as Ctx } }).createMachine({ context: { n: { v: 1 } } });"
    )
    (tmp_path / "src" / "types.d.ts").write_text(
        'export * from "./more/deep"; import { Hidden } from "../../outside";'
    )
    (tmp_path / "src" / "more").mkdir()
    (tmp_path / "src" / "more" / "deep.ts").write_text("export interface Ctx { n: { v: number } }")
    (tmp_path / "package.json").write_text("{}")
    deployed = await run(
        "deploy", str(tmp_path / "src" / "m.ts"), "--name", "types-alone", client=client
    )
    assert deployed.returncode == 0, deployed.stderr
    await generate(client, "types-alone", tmp_path)
    text = (tmp_path / "m.hub.ts").read_text()
    assert "interface Ctx { n: { v: number } }" in text
    assert '"context": {"n": {"v": 1}}' in text
