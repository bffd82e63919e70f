"""`machinehub types`: what an app's compiler makes of the file. Checked with the real `tsc`."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from machinehub.cli import shapes
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


async def test_who_uses_a_session_has_a_type(client: Client, tmp_path: Path) -> None:
    """The roles of the access table; and of what a view shows nothing is claimed."""
    source = """
import { createMachine } from "xstate";
export default createMachine({ types: {} as { context: { secret: string } }, context: { secret: "s" } });
export const view = () => ({ context: { shown: 1 } });
"""
    rules = [{"events": ["a"], "roles": ["editor", "host"]}, {"events": ["b"], "roles": []}]
    upload = {"name": "types-roles", "entry": "m.ts", "files": {"m.ts": source}, "access": rules}
    assert (await client.http.post("/api/v1/deployments", json=upload)).status_code == 201
    await generate(client, "types-roles", tmp_path)
    (tmp_path / "app.ts").write_text("""
import { connect } from "@machinehub/client";
import hub, { type Member, type Role } from "./m.hub";
const role: Role = "editor";
// @ts-expect-error there is no such role
const wrong: Role = "edtor";
export const access = ({ member }: { member: Member }) => member.roles.includes(role) && !wrong;
const store = connect({ ...hub, sessionId: "s", publishableKey: "mhp_k", token: async () => "t" });
// @ts-expect-error what the machine keeps is not what clients see
store.getSnapshot().context.secret;
store.getSnapshot().snapshot;
""")
    assert await tsc(tmp_path) == ""
