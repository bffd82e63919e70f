"""What a build has to say: names that nothing implements, states that are not there, what is no
machine; and that it can be an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support import COUNTER

if TYPE_CHECKING:
    from httpx import Response

    from tests.support import Client

TYPO = """import { setup, createMachine, sendTo, raise, spawnChild, and, not } from "xstate";
const child = createMachine({ entry: "childAction" });
export default setup({ actors: { child }, actions: { known: () => {} }, guards: { yes: () => true } }).createMachine({
  id: "m",
  initial: "a",
  entry: [{ type: "known" }, "nope"],
  states: {
    a: {
      invoke: [{ src: "child" }, { src: "nobody" }],
      on: { GO: { guard: and(["yes", not("no")]), actions: [raise({ type: "X" }, { delay: "soon" }), spawnChild("ghost")] } },
      after: { LATER: "b" },
    },
    b: {},
  },
});
"""
EXPECTED = {
    "m.ts:2:38: no action 'childAction' is implemented; '(machine)' names it",
    "m.ts:6:30: no action 'nope' is implemented; 'm' names it",
    "m.ts:9:41: no actor 'nobody' is implemented; 'm.a' names it",
    "m.ts:10:42: no guard 'no' is implemented; 'm.a' names it",
    "m.ts:10:91: no delay 'soon' is implemented; 'm.a' names it",
    "m.ts:10:113: no actor 'ghost' is implemented; 'm.a' names it",
    "m.ts:11:16: no delay 'LATER' is implemented; 'm.a' names it",
}


async def deploy(client: Client, source: str, *, entry: str = "m.ts", **more: Any) -> Response:
    body = {"name": "typo", "entry": entry, "files": {entry: source}} | more
    return await client.http.post("/api/v1/deployments", json=body)


async def test_names_that_nothing_implements_are_warnings(client: Client) -> None:
    deployed = await deploy(client, TYPO)
    assert deployed.status_code == 201, deployed.text
    assert set(deployed.json()["warnings"]) == EXPECTED
    again = await deploy(client, TYPO)
    assert (again.status_code, set(again.json()["warnings"])) == (200, EXPECTED)
    version = (await client.http.get("/api/v1/machines/typo/versions/1")).json()
    assert set(version["warnings"]) == EXPECTED
    assert "warnings" not in version["definition"]
    machine = deployed.json()["machine"]["id"]
    shown = await client.http.get(f"/{machine}")
    assert "warnings" not in shown.text, "file names are for who deployed them"


async def test_keys_that_mean_nothing_are_warnings(client: Client) -> None:
    source = """import { createMachine } from "xstate";
export default createMachine({ id: "m", predictableActionArguments: true, initial: "a", states: {
  a: { onn: {}, on: { GO: [{ cond: "x", target: "a" }] }, always: { guard: () => false, data: 1 }, tags: "t" } } });"""
    deployed = await deploy(client, source, name="keys")
    assert deployed.json()["warnings"] == [
        "m.ts:2:41: the key 'predictableActionArguments' of 'm' means nothing to XState",
        "m.ts:3:8: the key 'onn' of 'm.a' means nothing to XState",
        "m.ts:3:30: the key 'cond' of 'm.a' means nothing to XState (XState 5 has `guard`)",
        "m.ts:3:89: the key 'data' of 'm.a' means nothing to XState (XState 5 has `output`)",
    ]


async def test_with_strict_a_warning_is_an_error(client: Client) -> None:
    refused = await deploy(client, TYPO, name="strictly", strict=True)
    assert (refused.status_code, refused.json()["code"]) == (422, "has_warnings")
    assert {"file": "m.ts", "line": 6, "column": 30} in [
        {key: value for key, value in each.items() if key != "message"}
        for each in refused.json()["errors"]
    ]
    assert (await client.http.get("/api/v1/machines/strictly")).status_code == 404
    await deploy(client, TYPO, name="loose")
    known = await deploy(client, TYPO, name="strictly", strict=True)
    assert known.json()["code"] == "has_warnings", "content that was built before"
    assert (await deploy(client, COUNTER, name="clean", strict=True)).status_code == 201


@pytest.mark.parametrize(
    ("machine", "line", "column", "text"),
    [
        ('initial: "b",\n states: { a: {} }', 2, 10, "the initial state 'b' of 'm' does not exist"),
        (
            'initial: "a",\n states: { a: { on: { GO: "c" } } }',
            3,
            27,
            "a transition of 'm.a' leads to 'c', which does not exist on 'm'",
        ),
        (
            'initial: "a",\n states: { a: { on: { GO: { target: "#x" } } } }',
            3,
            37,
            "a transition leads to '#x', which does not exist on the machine 'm'",
        ),
    ],
)
async def test_states_that_are_not_there_are_errors_at_their_place(
    client: Client, machine: str, line: int, column: int, text: str
) -> None:
    source = (
        'import { createMachine } from "xstate"; export default createMachine({ id: "m",\n'
        + machine
        + " });"
    )
    refused = await deploy(client, source)
    assert refused.status_code == 422
    (error,) = refused.json()["errors"]
    assert error == {"file": "m.ts", "line": line, "column": column, "message": text}


async def test_json_that_is_no_machine_is_refused(client: Client) -> None:
    for text in ('{"compilerOptions": {}}', '{"type": "module"}', "{}"):
        refused = await deploy(client, text, entry="tsconfig.json")
        assert (refused.status_code, refused.json()["code"]) == (422, "no_machine"), text
        assert "this is no machine: a config has" in refused.json()["detail"]
    machine = await deploy(client, '{"type": "parallel", "states": {}}', entry="m.json")
    assert machine.status_code == 201, machine.text


async def test_a_commonjs_file_may_be_the_machine(client: Client) -> None:
    source = (
        'const { createMachine } = require("xstate");\nmodule.exports = createMachine({ on: {} });'
    )
    assert (await deploy(client, source, entry="m.cjs")).status_code == 201


async def test_payloads_that_an_upload_describes_are_in_the_definition(client: Client) -> None:
    payloads = {
        "GO": [{"name": "n", "kind": "number"}, {"name": "c", "kind": "choice", "values": [1]}]
    }
    deployed = await deploy(client, COUNTER + "// payloads", name="forms", payloads=payloads)
    machine = deployed.json()["machine"]["id"]
    assert (await client.http.get(f"/{machine}")).json()["definition"]["payloads"] == payloads
    wrong: list[dict[str, Any]] = [
        {"GO": [{"name": "n", "kind": "html"}]},
        {"GO": [{"name": "n" * 201, "kind": "text"}]},
        {"GO": [{"name": "n", "kind": "text"}] * 51},
        {f"E{n}": [] for n in range(201)},
    ]
    for bad in wrong:
        refused = await deploy(client, COUNTER, name="forms", payloads=bad)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_body")
