"""The client as an npm package: a hub serves it, and it is ready for npm."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING

from tests.clients.test_client import CLIENT, run
from tests.support import COUNTER

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Client

APP = """import { connect } from "@machinehub/client";
import { useMachine } from "@machinehub/client/react";
import info from "@machinehub/client/package.json" with { type: "json" };
const store = connect({ url: process.argv[2], sessionId: "npm", transport: "sse" });
const ack = await store.send({ type: "increment" });
console.log(JSON.stringify([ack.outcome, ack.taken, typeof useMachine, info.version]));
store.close();
"""


async def test_it_is_installed_from_a_hub(client: Client, tmp_path: Path) -> None:
    machine = await client.deploy(COUNTER, name="npm-client")
    (tmp_path / "package.json").write_text('{"type": "module", "private": true}')
    install = ["npm", "install", "--no-audit", "--no-fund", "--silent"]
    address = f"{client.url}/assets/machinehub-client.tgz"
    await run(*install, address, "react@19", cwd=tmp_path)
    lock = json.loads((tmp_path / "package-lock.json").read_text())
    integrity = lock["packages"]["node_modules/@machinehub/client"]["integrity"]
    response = await client.http.get("/assets/machinehub-client.tgz")
    assert response.headers["content-type"] == "application/gzip"
    said = response.headers["repr-digest"]
    assert said.startswith("sha-512=:")
    assert integrity == "sha512-" + said.removeprefix("sha-512=:").removesuffix(":")
    computed = base64.b64encode(hashlib.sha512(response.content).digest()).decode()
    assert integrity == f"sha512-{computed}"
    version = json.loads((CLIENT / "package.json").read_text())["version"]
    named = await client.http.get(f"/assets/machinehub-client-{version}.tgz")
    assert named.content == response.content
    (tmp_path / "app.js").write_text(APP)
    output = await run("node", "app.js", f"{client.url}/{machine}", cwd=tmp_path)
    assert json.loads(output.splitlines()[-1]) == ["accepted", True, "function", version]


async def test_it_is_ready_for_npm() -> None:
    output = await run("npm", "publish", "--dry-run", "--json")
    told = json.loads(output[output.index("{") :].split("\n}\n")[0] + "\n}")
    told = told.get("@machinehub/client", told)
    files = {each["path"] for each in told["files"]}
    package = json.loads((CLIENT / "package.json").read_text())
    wanted = {"README.md", "LICENSE", "package.json"}
    for export in package["exports"].values():
        ways = export.values() if isinstance(export, dict) else [export]
        wanted |= {way.removeprefix("./") for way in ways}
    assert wanted <= files, wanted - files
    assert all(path.startswith("dist/") for path in files - wanted), files
    assert package["license"] == "MIT"
    assert package["publishConfig"] == {"access": "public"}
