"""What sessions stay on while they last: their version, their engine, and after errors their state.
On real databases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import zstandard

from machinehub.ids import Digest, MachineId
from machinehub.model import DEFAULT_PROJECT
from machinehub.store.store import pack_files
from sandbox.forge import forge_base, forge_image, load_guest
from sandbox.worker import GUEST
from tests.durable import THROWS, asleep, count, hub_on, send
from tests.sandbox.sandboxes import Sandbox
from tests.sandbox.test_instance import another_engine
from tests.support import COUNTER, Client, running_hub

if TYPE_CHECKING:
    from pathlib import Path


async def test_events_behind_the_end_do_not_move_the_seq(client: Client) -> None:
    source = (
        'import { createMachine } from "xstate"; export default createMachine({ initial: "a", '
        'states: { a: { on: { END: "b" } }, b: { type: "final" } } });'
    )
    machine = await client.deploy(source, name="ends")
    async with client.socket(f"{machine}/s") as socket:
        for number, event in enumerate(["NOP", "END", "NOP", "NOP", "NOP"]):
            await socket.send_raw({"type": "event", "id": f"e{number}", "event": {"type": event}})
        acks = [await socket.until("ack") for _ in range(5)]
    assert [(ack["seq"], ack.get("error", {}).get("code")) for ack in acks] == [
        (2, None),
        (3, None),
        *[(3, "session_finished")] * 3,
    ]
    assert (await client.http.get(f"/{machine}/s")).json()["seq"] == 3
    assert (await client.http.post(f"/api/v1/machines/{machine}/sessions/s/replay")).json()[
        "verified"
    ]


async def test_transitions_may_be_the_librarys(client: Client) -> None:
    """The same machine in both ways; what a version was deployed with is part of its content."""
    tables = await client.deploy(COUNTER, name="by-tables")
    library = await client.deploy(COUNTER, name="by-library", machine={"transitions": "library"})
    seen = []
    for machine in (tables, library):
        for _ in range(3):
            answer = await send(client, f"{machine}/s", "increment")
        seen.append(answer.json()["snapshot"])
    assert seen[0] == seen[1]
    digests = [
        (await client.http.get(f"/api/v1/machines/{name}/versions")).json()["data"][0]["digest"]
        for name in ("by-tables", "by-library")
    ]
    assert digests[0] != digests[1]
    upload = {"name": "bad", "entry": "a.ts", "files": {"a.ts": COUNTER}}
    bad = await client.http.post(
        "/api/v1/deployments", json=upload | {"machine": {"transitions": "magic"}}
    )
    assert (bad.status_code, bad.json()["code"]) == (400, "invalid_body")


# --- what an error does


async def test_a_machine_may_stop_on_errors(client: Client) -> None:
    stops = await client.deploy(THROWS, name="stops", machine={"on_error": "stop"})
    undoes = await client.deploy(THROWS, name="undoes")
    for machine in (stops, undoes):
        await send(client, f"{machine}/s", "INC")
    undone = await send(client, f"{undoes}/s", "BOOM")
    assert (undone.status_code, undone.json()["code"]) == (422, "machine_error")
    assert (await send(client, f"{undoes}/s", "INC")).json()["snapshot"]["context"] == {"n": 2}
    stopped = (await send(client, f"{stops}/s", "BOOM")).json()
    assert stopped["snapshot"]["status"] == "error"
    assert stopped["snapshot"]["error"] == {"name": "Error", "message": "boom"}
    assert (await send(client, f"{stops}/s", "INC")).json()["code"] == "session_finished"
    assert (await client.http.get(f"/{stops}")).json()["definition"]["on_error"] == "stop"
    bad = await client.http.post(
        "/api/v1/deployments",
        json={
            "name": "bad",
            "entry": "a.ts",
            "files": {"a.ts": THROWS},
            "machine": {"on_error": "explode"},
        },
    )
    assert (bad.status_code, bad.json()["code"]) == (400, "invalid_body")
    assert (await client.deploy(THROWS, name="stops", machine={"on_error": "stop"})) == stops
    versions = (await client.http.get("/api/v1/machines/stops/versions")).json()["data"]
    assert len(versions) == 1


# --- pinned


async def test_a_session_stays_on_its_version(database_url: str, tmp_path: Path) -> None:
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(COUNTER)
        await send(client, f"{machine}/old")
        await client.deploy(COUNTER.replace("count + 1", "count + 10"))
        await asleep(client, machine, "old")
    async with hub_on(database_url, tmp_path) as client:
        old = (await send(client, f"{machine}/old")).json()
        new = (await send(client, f"{machine}/new")).json()
        assert (old["snapshot"]["context"], new["snapshot"]["context"]) == (
            {"count": 2},
            {"count": 10},
        )
        listed = (await client.http.get(f"/api/v1/machines/{machine}/sessions")).json()["data"]
        assert [(session["id"], session["version"]) for session in listed] == [
            ("new", 2),
            ("old", 1),
        ]


async def test_a_session_stays_on_its_engine(tmp_path: Path) -> None:
    """A hub that was given a new engine still runs what was frozen under the old one; without it,
    it says so.
    """
    older = another_engine((GUEST / "engine.wasm").read_bytes())
    sandbox = Sandbox()
    base = forge_base(
        sandbox.engine,
        older,
        (GUEST / "genesis.wasm").read_bytes(),
        [(GUEST / name).read_text() for name in ("prelude.js", "polyfills.js")],
        memory_bytes_max=2**24,
    )
    guest = load_guest(sandbox.engine, older, base)
    script = 'module.exports={default:require("xstate").createMachine({context:{n:0},on:{INC:{actions:require("xstate").assign({n:({context})=>context.n+1})}}})};'
    wasm, definition, _ = forge_image(
        sandbox.engine, guest, script, source_map=None, cpu_s=2, memory_bytes_max=2**24
    )
    async with running_hub(tmp_path, workers=1) as client:
        await client.hub.store.deploy(
            new_id=MachineId("Older1"),
            project=DEFAULT_PROJECT,
            name="older",
            digest=Digest("o" * 32),
            entry="m.ts",
            files=pack_files({"m.ts": ""}),
            message="",
            activate=True,
            now_ms=1,
            image=zstandard.compress(wasm),
            engine=guest.engine_digest,
            definition=msgspec.json.encode(definition),
        )
        answer = await send(client, "Older1/s", "INC")
        assert (answer.status_code, answer.json()["code"]) == (503, "image_damaged")
        await client.hub.store.add_engine(guest.engine_digest, zstandard.compress(older))
        assert (await send(client, "Older1/s", "INC")).json()["snapshot"]["context"] == {"n": 1}
        newer = await client.deploy(COUNTER)
        assert (await send(client, f"{newer}/s")).json()["snapshot"]["context"] == {"count": 1}
        assert await count(client, "engines") == 3  # two engines, and a template
    async with running_hub(tmp_path, workers=1) as client:
        assert (await send(client, "Older1/s", "INC")).json()["snapshot"]["context"] == {"n": 2}
