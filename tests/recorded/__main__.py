"""Records databases as this code writes them: `python -m tests.recorded NAME`.

They are kept, so that every later hub can be held to reading, replaying and upgrading them. A
recording is `NAME.sqlite.xz`, `NAME.postgres.sql.xz`, and `NAME.json`, which says what was told to
clients at the time.
"""

from __future__ import annotations

import asyncio
import json
import lzma
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import connect

from tests.databases import new_database, postgres_program, postgres_server
from tests.processes import hub_process

FOLDER = Path(__file__).parent
ROOM = """
import { assign, createMachine } from "xstate";
const log = (what) => assign({ log: ({ context }) => [...context.log, what].slice(-8) });
export default createMachine({
  id: "room",
  context: ({ input }) => ({ count: 0, here: 0, log: [], dice: Math.random(), asked: input ?? null }),
  initial: "open",
  on: {
    "presence.joined": { actions: assign({ here: ({ event }) => event.count }) },
    "presence.left": { actions: assign({ here: ({ event }) => event.count }) },
    increment: { actions: assign({ count: ({ context }) => context.count + 1 }) },
    roll: { actions: assign({ dice: () => Math.random() }) },
    note: { actions: [log("note"), ({ event }) => console.log(event.text)] },
    fail: { actions: () => { throw new Error("as asked"); } },
    later: { actions: () => setTimeout(() => {}, 20) },
  },
  states: {
    open: { on: { wait: "waiting" } },
    waiting: { after: { 30: { target: "open", actions: log("30") }, 900000: "closed" }, on: { end: "closed" } },
    closed: { type: "final" },
  },
});
"""
TURNSTILE = Path("examples/modules/turnstile/dist/turnstile.wasm")


async def _deploy(http: httpx.AsyncClient, name: str, entry: str, content: str) -> str:
    body = {"name": name, "entry": entry, "files": {entry: content}}
    answer = await http.post("/api/v1/deployments", json=body)
    assert answer.status_code == 201, answer.text
    machine: str = answer.json()["machine"]["id"]
    return machine


async def _send(http: httpx.AsyncClient, path: str, *types: str) -> None:
    for number, type_ in enumerate(types):
        body = {"type": type_, "text": "hi"}
        await http.post(path, json=body, headers={"Idempotency-Key": f"{type_}-{number}"})


async def _drive(url: str) -> dict[str, Any]:
    """Sessions in every state that outlives a hub; what clients were told of them."""
    import base64

    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        room = await _deploy(http, "room", "room.ts", ROOM)
        module = base64.b64encode(TURNSTILE.read_bytes()).decode()
        turnstile = await _deploy(http, "turnstile", "turnstile.wasm", module)
        await http.put(f"/{room}/started", json={"input": {"who": "ann"}})
        await _send(http, f"/{room}/busy", *["increment", "roll", "note", "fail", "later"] * 6)
        await _send(http, f"/{room}/long", *["increment"] * 300)
        await _send(http, f"/{room}/done", "increment", "wait", "end", "increment")
        await _send(http, f"/{room}/timed", "wait")
        await asyncio.sleep(0.2)
        await _send(http, f"/{room}/waiting", "wait")
        await _send(http, f"/{turnstile}/t1", "COIN", "PUSH", "COIN")
        fork = {"at": 5, "session": "fork"}
        await http.post(f"/api/v1/machines/{room}/sessions/busy/fork", json=fork)
        socket = f"{url.replace('http', 'ws', 1)}/{room}/crowd?client=a-key-of-a-client-1"
        async with connect(socket, subprotocols=["machinehub.v1"]) as crowd:  # type: ignore[list-item]
            await crowd.recv()
            await asyncio.sleep(0.3)
            told: dict[str, Any] = {
                "machines": {"room": room, "turnstile": turnstile},
                "sessions": {},
            }
            for machine in (room, turnstile):
                listing = (await http.get(f"/api/v1/machines/{machine}/sessions")).json()["data"]
                for name in (session["id"] for session in listing):
                    at = f"/api/v1/machines/{machine}/sessions/{name}"
                    session = (await http.get(at)).json()
                    journal = (await http.get(f"{at}/journal?limit=500")).json()["data"]
                    replay = (await http.post(f"{at}/replay")).json()
                    told["sessions"][f"{machine}/{name}"] = {
                        "seq": session["seq"],
                        "finished": session["finished"],
                        "snapshot": session["snapshot"],
                        "journal": journal,
                        "digest": replay["digest"],
                    }
        return told


async def _record(folder: Path, database_url: str) -> dict[str, Any]:
    async with hub_process(folder, MACHINEHUB_DATABASE_URL=database_url) as hub:
        told = await _drive(hub.url)
        hub.process.terminate()
        await hub.process.wait()
    return told


async def main(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder, postgres_server(Path(folder)) as server:
        file = Path(folder, "hub.db")
        told = {"sqlite": await _record(Path(folder), f"sqlite:///{file}")}
        with sqlite3.connect(file) as database:
            database.execute("PRAGMA journal_mode=DELETE")
            database.execute("VACUUM")
        (FOLDER / f"{name}.sqlite.xz").write_bytes(lzma.compress(file.read_bytes(), preset=9))
        url = await new_database(server)
        told["postgres"] = await _record(Path(folder), url)
        dump = str(postgres_program("pg_dump"))
        command = [dump, "--no-owner", "--no-privileges", "--dbname", url]
        dumped = await asyncio.to_thread(
            lambda: subprocess.run(command, check=True, capture_output=True).stdout
        )
        packed = lzma.compress(dumped, preset=9)
        (FOLDER / f"{name}.postgres.sql.xz").write_bytes(packed)
        text = json.dumps(told, sort_keys=True, separators=(",", ":"))
        for name_ in ("at", "digest"):  # one line for each entry
            text = text.replace(f'{{"{name_}"', f'\n{{"{name_}"')
        (FOLDER / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
