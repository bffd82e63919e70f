"""The npm package: its own tests (vitest, some against a hub), its sizes, and that a hub's death is
only a delay to it.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.processes import deploy, hub_process, until_ready
from tests.support import COUNTER, EXAMPLES, ROOT, Client, free_port, running_hub

if TYPE_CHECKING:
    from pathlib import Path

CLIENT = ROOT / "clients" / "js"
ROOM = """
import { assign, createMachine, emit } from "xstate";
export default createMachine({
  context: ({ input }) => ({ input: input ?? null, said: [], from: null }),
  initial: "open",
  output: { over: true },
  states: {
    open: {
      on: {
        SAY: { actions: [assign({ said: ({ context, event }) => [...context.said, event.text], from: ({ event }) => event.sender.id }), emit(({ event }) => ({ type: "said", text: event.text }))] },
        BOOM: { actions: () => { throw new Error("boom"); } },
        END: "closed",
      },
    },
    closed: { type: "final" },
  },
});
"""


async def run(*command: str, cwd: Path = CLIENT, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=os.environ | {"NO_COLOR": "1"} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_the_package_passes_its_own_tests(client: Client) -> None:
    machines = {
        name: f"{client.url}/{await client.deploy(source, name=f'js-{name}')}"
        for name, source in (
            ("counter", COUNTER),
            ("room", ROOM),
            ("checkout", (EXAMPLES / "checkout.ts").read_text()),
        )
    }
    output = await run("npx", "vitest", "run", HUB_MACHINES=json.dumps(machines))
    assert "skipped" not in output, output


async def test_events_are_limited_and_none_is_lost(tmp_path: Path) -> None:
    """A hub with a token counts events; the client slows down."""
    async with running_hub(tmp_path, token="secret") as client:
        machines = {
            name: f"{client.url}/{await client.deploy(source, name=name)}"
            for name, source in (("counter", COUNTER), ("room", ROOM), ("checkout", COUNTER))
        }
        await run(
            "npx", "vitest", "run", "live", "-t", "two hundred", HUB_MACHINES=json.dumps(machines)
        )


def test_it_is_small() -> None:
    sizes = {
        name: len(gzip.compress((CLIENT / "dist" / name).read_bytes(), mtime=0))
        for name in ("client.js", "react.js")
    }
    assert sizes["client.js"] < 12_000, sizes
    assert sizes["react.js"] < 2_000, sizes


STEADY = """
import { connect } from "./dist/index.js";
const [url, transport, count] = process.argv.slice(2);
const WebSocket = transport === "websocket" ? (await import("ws")).WebSocket : undefined;
const store = connect({ url, sessionId: "steady", transport, WebSocket });
const statuses = new Set();
store.subscribe(() => statuses.add(store.status));
const acks = [];
for (let n = 0; n < Number(count); n++) {
  acks.push(store.send({ type: "increment" }));
  if (n === 20) console.log("under way");
  await new Promise((resolve) => setTimeout(resolve, 20));
}
const outcomes = (await Promise.all(acks)).map((ack) => ack.outcome);
console.log(JSON.stringify({ accepted: outcomes.filter((outcome) => outcome === "accepted").length, statuses: [...statuses].sort(), count: store.getSnapshot().context.count }));
store.close();
"""


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_a_hub_that_is_killed_is_only_a_delay(tmp_path: Path, transport: str) -> None:
    port = free_port()
    script = CLIENT / f"steady-{transport}.tmp.mjs"
    script.write_text(STEADY)
    try:
        async with hub_process(tmp_path, port=port) as hub:
            machine = await deploy(hub.url)
            node = await asyncio.create_subprocess_exec(
                "node",
                script.name,
                machine,
                transport,
                "150",
                cwd=CLIENT,
                stdout=asyncio.subprocess.PIPE,
            )
            assert node.stdout is not None
            assert await asyncio.wait_for(node.stdout.readline(), 60) == b"under way\n"
            hub.process.send_signal(signal.SIGKILL)
            await hub.process.wait()
        async with hub_process(tmp_path, port=port) as hub:
            await until_ready(hub.url)
            told: dict[str, Any] = json.loads(await asyncio.wait_for(node.stdout.readline(), 60))
            assert told == {"accepted": 150, "statuses": ["open", "reconnecting"], "count": 150}
            async with httpx.AsyncClient() as http:
                assert (await http.get(f"{machine}/steady")).json()["snapshot"]["context"] == {
                    "count": 150
                }
            assert await asyncio.wait_for(node.wait(), 60) == 0, (
                "a closed store keeps nothing running"
            )
    finally:
        script.unlink()


BARE = """
for (const name of ["WebSocket", "window", "document", "location", "sessionStorage", "navigator", "CloseEvent", "MessageEvent", "Event", "EventTarget"]) { try { delete globalThis[name]; } catch {} }
const { connect } = await import("./dist/index.js");
await import("./dist/react.js");
const { WebSocket } = await import("ws");
const store = connect({ url: process.argv[1], sessionId: "bare", WebSocket });
const ack = await store.send({ type: "increment" });
await store.waitFor((state) => state.context.count === 1);
store.close();
console.log(typeof Event, ack.outcome);
"""


async def test_the_package_brings_what_a_bare_place_lacks(client: Client) -> None:
    """Nothing of the DOM is touched at import, and what React Native has not is no reason to hear
    nothing: it, Node and workers use the same file.
    """
    machine = await client.deploy(COUNTER, name="bare")
    said = await run("node", "--input-type=module", "-e", BARE, f"{client.url}/{machine}")
    assert re.search(r"^function accepted$", said, re.MULTILINE)
