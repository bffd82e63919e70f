"""Stately's protocol is an adapter: a hub without its folder is whole."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from typing import TYPE_CHECKING

import httpx

from tests.processes import Process, deploy, until_ready
from tests.support import CACHE, ROOT, free_port

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_hub_without_the_folder(tmp_path: Path) -> None:
    copy = tmp_path / "source"
    shutil.copytree(
        ROOT / "machinehub", copy / "machinehub", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("sandbox", "migrations", "templates"):
        (copy / name).symlink_to(ROOT / name)
    shutil.rmtree(copy / "machinehub" / "protocols" / "sky")
    root = copy / "machinehub" / "app.py"
    lines = [
        line for line in root.read_text().splitlines() if not re.search(r"\bSky|\.sky\.", line)
    ]
    assert len(root.read_text().splitlines()) - len(lines) == 4  # two imports, two faces
    root.write_text("\n".join(lines) + "\n")
    assert not [
        path for path in copy.rglob("*.py") if "protocols.sky" in path.read_text(errors="ignore")
    ]
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", "from machinehub.cli.main import main; main()"),
        *("serve", "--port", str(port), "--data", str(tmp_path / "data")),
        cwd=copy,
        env=os.environ | {"MACHINEHUB_CACHE": str(CACHE), "PYTHONPATH": str(copy)},
        stderr=asyncio.subprocess.PIPE,
    )
    hub = Process(process, f"http://127.0.0.1:{port}")
    try:
        await until_ready(hub.url)
        machine = await deploy(hub.url)
        async with httpx.AsyncClient() as http:
            sent = await http.post(f"{machine}/s", json={"type": "increment"})
            assert sent.json()["snapshot"]["context"] == {"count": 1}
            asked = await http.get(f"{hub.url}/registry/api/sky/actor-config?actorId=x")
            assert asked.status_code == 404
    finally:
        process.kill()
        await process.communicate()
