"""What `xstate sky` writes into an app: it runs on XState 5.0.0-beta.37 and on XState 5, and does
there what the machine does on the hub.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from machinehub.protocols.sky.source import CannotRewrite, Machine, _rewritten, module_of
from tests.protocols.sky.replicas import APP, run_esbuild
from tests.support import EXAMPLES, ROOT, Client

if TYPE_CHECKING:
    from pathlib import Path

RUNS = """
import { createActor } from "xstate";
import * as made from "./made.ts";
const actor = createActor(made.machine);
actor.start();
const states = [];
for (const event of JSON.parse(process.argv[2])) {
  actor.send(event);
  const { value, context, status } = actor.getSnapshot();
  states.push({ value, context, status });
}
console.log(JSON.stringify(states));
process.exit(0);
"""
EVENTS: dict[str, list[dict[str, Any]]] = {
    "counter": [{"type": "increment"}, {"type": "increment"}, {"type": "decrement"}],
    "traffic-light": [{"type": "PEDESTRIAN"}],
    "stopwatch": [{"type": "START"}],
    "media-player": [{"type": "PLAY"}, {"type": "PAUSE"}],
}


def machine_of(source: str, entry: str = "m.ts", **files: str) -> Machine:
    return Machine("m", 3, entry, {entry: source, **files}, {"root": {"id": "m"}})


async def run(folder: Path, text: str, events: list[dict[str, Any]], xstate: Path) -> Any:
    """The states that a machine goes through."""
    (folder / "made.ts").write_text(
        text if "export const machine" in text else text + "\nexport { machine };\n"
    )
    (folder / "run.ts").write_text(RUNS)
    bundle = folder / "run.mjs"
    await run_esbuild(folder / "run.ts", bundle, xstate)
    done = await asyncio.create_subprocess_exec(
        "node", str(bundle), json.dumps(events), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(done.communicate(), 60)
    return json.loads(output)


@pytest.mark.parametrize("name", EVENTS)
async def test_examples_do_the_same(name: str, client: Client, tmp_path: Path) -> None:
    source = (EXAMPLES / f"{name}.ts").read_text()
    machine = await client.deploy(source, name=f"sky-source-{name}")
    answer = await client.http.get(
        f"/registry/api/sky/actor-config?actorId={machine}", headers={"Authorization": "Bearer k"}
    )
    text = answer.json()["configString"]
    assert "left out" not in text
    wanted = []
    for event in EVENTS[name]:
        said = (await client.http.post(f"/{machine}/s", json=event)).json()["snapshot"]
        wanted.append({key: said.get(key) for key in ("value", "context", "status")})
    for xstate in (APP / "node_modules" / "xstate", ROOT / "node_modules" / "xstate"):
        found = await run(tmp_path, text, EVENTS[name], xstate)
        assert [{key: each.get(key) for key in wanted[0]} for each in found] == wanted


def test_what_each_example_is_made_from() -> None:
    """Those that XState's early version can run are their own source."""
    made = {}
    for path in sorted(EXAMPLES.glob("*.ts")):
        try:
            _rewritten(machine_of(path.read_text()))
            made[path.stem] = ""
        except CannotRewrite as error:
            made[path.stem] = str(error)
    assert {name: why for name, why in made.items() if why} == {
        "checkout": "XState 5.0.0-beta.37 calls the error of onError otherwise",
        "kitchen": "XState 5.0.0-beta.37 has no enqueueActions()",
    }


@pytest.mark.core
@pytest.mark.parametrize(
    ("source", "ends"),
    [
        ("export default createMachine({});", "const machine = createMachine({});"),
        ("const machine = createMachine({});\nexport default machine;", "createMachine({});"),
        ("export const machine = createMachine({});", "export const machine = createMachine({});"),
        ("export const lamp = createMachine({});", "const machine = lamp;"),
        (
            "export const access = () => true;\nexport const lamp = createMachine({});",
            "const machine = lamp;",
        ),
        ("const lamp = createMachine({});\nexport default lamp;", "const machine = lamp;"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_machine_is_called_machine(source: str, ends: str, newline: str, mark: str) -> None:
    given = f'{mark}import {{ createMachine }} from "xstate";\n{source}'.replace("\n", newline)
    text = module_of(machine_of(given))
    assert text.rstrip().endswith(ends)
    assert text.count('from "xstate"') == 1
    assert "Made from the definition" not in text


@pytest.mark.core
@pytest.mark.parametrize(
    ("source", "why"),
    [
        ('import * as xs from "xstate";\nexport const machine = 1;', "otherwise than by names"),
        ('import { setup as s } from "xstate";\nexport const machine = 1;', "has no setup()"),
        ('import { enqueueActions } from "xstate";\nexport default 1;', "no enqueueActions()"),
        ('import { z } from "zod";\nexport default 1;', "imports 'zod'"),
        ('import "./deck";\nexport default 1;', "imports './deck'"),
        ("const machine = 1;\nexport { machine };", "in a list"),
        ("export const a = 1;\nexport const b = 2;", "not plain which"),
        ("export const machine = 1;\nexport default other;", "another than"),
        ('import { setup } from "xstate";\nsetup({}).extend({});', "more of setup()"),
        ('/* hi */ import { assign } from "xstate";\nexport default 1;', "do not begin a line"),
        ('  import { assign } from "xstate";\nexport default 1;', "do not begin a line"),
        ("export const a = 1, lamp = createMachine({});", "not plain which"),
        ("const machine = setup({});\nexport default machine.createMachine({});", "else machine"),
        ("const text = `\nimport a from 'xstate'\n`;\nexport default 1;", "template literal"),
        (
            "const text = `\nexport default 1\n`;\nexport const lamp = createMachine({});",
            "template",
        ),
        ("export default createMachine({ on: { A: { params: {} } } });", "no params"),
        ("export default f({ onError: ({ event }) => event.error });", "onError"),
    ],
)
def test_what_its_source_cannot_say_is_made_from_the_definition(source: str, why: str) -> None:
    text = module_of(machine_of(source))
    assert "// Made from the definition alone: " in text
    assert why in text
    assert "const machine = createMachine({" in text


@pytest.mark.core
def test_a_source_of_nothing_but_imports_takes_no_time() -> None:
    """A megabyte of them: each is looked at once."""
    text = module_of(machine_of("import\n" * 150_000 + 'from "xstate";\nexport default 1;'))
    assert "const machine" in text


@pytest.mark.core
def test_of_several_files_the_definition_is_taken() -> None:
    given = machine_of("export default 1;", **{"deck.ts": ""})
    assert "made of 2 files" in module_of(given)


@pytest.mark.core
def test_json_is_its_own_source() -> None:
    text = module_of(machine_of('{"id": "m", "initial": "a", "states": {"a": {}}}', "m.json"))
    assert "Made from" not in text
    assert '"initial": "a"' in text


async def test_a_definition_says_what_was_left_out(client: Client, tmp_path: Path) -> None:
    machine = await client.http.post(
        "/api/v1/deployments",
        json={
            "name": "sky-left-out",
            "entry": "m.ts",
            "files": {
                "rules.ts": "export const may = () => true;",
                "m.ts": """
import { assign, setup } from "xstate";
import { may } from "./rules";
export default setup({ guards: { may }, actions: { note: assign({ n: 1 }) } }).createMachine({
  id: "m", context: { n: 0 }, initial: "a",
  states: {
    a: { on: { GO: { target: "b", actions: "note" }, TRY: { target: "b", guard: "may" } } },
    b: { initial: "c", states: { c: { on: { NEXT: "d" } }, d: { after: { 50: "#m.a" }, tags: "end" } } },
  },
});
""",
            },
            "private": False,
        },
    )
    name = machine.json()["machine"]["id"]
    answer = await client.http.get(
        f"/registry/api/sky/actor-config?actorId={name}@1", headers={"Authorization": "Bearer k"}
    )
    text = answer.json()["configString"]
    assert "// Made from the definition alone: the machine is made of 2 files." in text
    assert "// Actions left out: note." in text
    assert "// Guards, whose transitions are left out: may." in text
    events = [{"type": type_} for type_ in ("TRY", "GO", "NEXT")]
    for xstate in (APP / "node_modules" / "xstate", ROOT / "node_modules" / "xstate"):
        states = await run(tmp_path, text, events, xstate)
        assert [each["value"] for each in states] == ["a", {"b": "c"}, {"b": "d"}]
