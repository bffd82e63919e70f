"""The wheel, as somebody installs it who has Python and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.support import CACHE, ROOT, free_port

if TYPE_CHECKING:
    from asyncio.subprocess import Process


async def run(*command: str, cwd: Path, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def first_url(process: Process) -> str:
    assert process.stdout is not None
    while not (line := (await process.stdout.readline()).decode().strip()).startswith("http"):
        assert process.returncode is None, line
    return line


def check_supply(folder: Path) -> None:
    """What the wheel says of its parts: valid, with a licence and its text for each of them."""
    text = (folder / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = json.loads(text)["components"]
    names = {part["name"] for part in parts}
    assert {"wasmtime", "starlette", "xstate", "react", "elkjs", "quickjs-ng"} <= names
    notices = (folder / "THIRD-PARTY-NOTICES.txt").read_text()
    for part in parts:
        _, _, behind = notices.partition(f"{part['name']} {part['version']}: ")
        assert len(behind.split("=" * 80)[1].strip()) > 300, part["name"]
    assert not any(name in names for name in ("pytest", "mypy", "typescript", "vite"))


@pytest.mark.xdist_group("wheel")
async def test_dev_from_an_installed_wheel(tmp_path: Path) -> None:
    await run("make", "wheel", f"PYTHON={sys.executable}", cwd=ROOT)
    (wheel,) = (ROOT / "build" / "wheel").glob("machinehub-*.whl")
    place = tmp_path / "installed"
    uv = str(Path(sys.executable).with_name("uv"))
    await run(uv, "venv", "--quiet", "--python", sys.executable, str(place), cwd=tmp_path)
    runtime = ("--require-hashes", "-r", str(ROOT / "requirements-runtime.lock"))
    for what in (runtime, ("--no-deps", str(wheel))):
        await run(uv, "pip", "install", "--quiet", "--python", str(place), *what, cwd=tmp_path)

    # No Node, no checkout; of this one's only what was compiled of the same engine.
    bare = {
        "PATH": str(place / "bin"),
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "MACHINEHUB_CACHE": str(CACHE),
    }
    check_supply(next(place.glob("lib/python*/site-packages/machinehub/legal")))
    machinehub = str(place / "bin" / "machinehub")
    await run(machinehub, "init", "poker", "--template", "poker", cwd=tmp_path, **bare)
    process = await asyncio.create_subprocess_exec(
        *(machinehub, "dev", "--port", str(free_port())),
        cwd=tmp_path / "poker",
        env=bare,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        url = await first_url(process)
        async with httpx.AsyncClient() as http:
            await http.post(f"{url}/s?client={'k' * 16}", json={"type": "JOIN", "name": "Anna"})
            vote = {"type": "VOTE", "card": 8}
            answer = await http.post(f"{url}/s?client={'k' * 16}", json=vote)
            (player,) = answer.json()["snapshot"]["context"]["players"].values()
            assert player == {"name": "Anna", "here": True, "card": 8}
            package = await http.get(f"{url.rpartition('/')[0]}/assets/machinehub-client.tgz")
            assert package.content.startswith(b"\x1f\x8b")
            page = await http.get(url, headers={"Accept": "text/html"})
            assert "/assets/" in page.text
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0
