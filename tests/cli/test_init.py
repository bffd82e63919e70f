"""Projects that `machinehub init` makes: they build, their tests pass, their apps run."""

from __future__ import annotations

import asyncio
import re
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.async_api import expect

from machinehub.cli.init import Template, files_of
from tests.browser import chromium
from tests.cli.test_cli import COMMAND, environment, run
from tests.support import ROOT, free_port

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from pathlib import Path

TEMPLATES = [each.value for each in Template]


@pytest.mark.parametrize("template", TEMPLATES)
async def test_a_project_builds_and_its_tests_pass(template: str, tmp_path: Path) -> None:
    made = await run("init", "My Room", "--template", template, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout == "cd 'My Room' && machinehub dev\n"
    project = tmp_path / "My Room"
    assert "{{" not in "".join(path.read_text() for path in project.rglob("*") if path.is_file())
    checked = await run("check", "--strict", cwd=project)
    assert checked.returncode == 0, checked.stderr
    # What `npm install` would bring, as this checkout has it.
    (project / "node_modules").symlink_to(ROOT / "node_modules")
    commands = [["vitest", "run"]]
    if not (project / "vite.config.ts").exists():  # an app needs types of a hub (below)
        commands.append(["tsc"])
    for command in commands:
        tests = await asyncio.to_thread(
            subprocess.run,
            ["npx", *command],
            cwd=project,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert tests.returncode == 0, tests.stdout + tests.stderr
    twice = await run("init", "My Room", "--template", template, cwd=tmp_path)
    assert twice.returncode == 5
    assert "already; nothing was written" in twice.stderr


@pytest.mark.parametrize("template", ["counter", "checkout"])
async def test_a_react_project_is_typed_and_bundled(template: str, tmp_path: Path) -> None:
    project = tmp_path / "shop"
    await run("init", "shop", "--template", template, cwd=tmp_path)
    (project / "node_modules").symlink_to(ROOT / "node_modules")
    dev = await start(project)
    try:
        await url_of(dev)
        types = await run(
            "types", "shop", "-o", "src/machine.hub.ts", cwd=project, MACHINEHUB_SERVER=server(dev)
        )
        assert types.returncode == 0, types.stderr
        assert "npm install http://127.0.0.1" in types.stderr
        for command in (["tsc"], ["vite", "build"]):
            done = await asyncio.to_thread(
                subprocess.run,
                ["npx", *command],
                cwd=project,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
    finally:
        await stop(dev)


def server(dev: Process) -> str:
    return f"http://127.0.0.1:{PORTS[dev.pid]}"


PORTS: dict[int, int] = {}


async def start(project: Path) -> Process:
    port = free_port()
    dev = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("dev", "--port", str(port)),
        cwd=project,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    PORTS[dev.pid] = port
    return dev


async def url_of(dev: Process) -> str:
    assert dev.stdout is not None
    return (await asyncio.wait_for(dev.stdout.readline(), 60)).decode().strip()


async def stop(dev: Process) -> None:
    dev.terminate()
    await dev.communicate()
    assert dev.returncode == 0


async def test_two_phones_vote(tmp_path: Path) -> None:
    await run("init", "poker", "--template", "poker", cwd=tmp_path)
    dev = await start(tmp_path / "poker")
    assert dev.stderr is not None
    app = ""
    while not app:
        line = (await asyncio.wait_for(dev.stderr.readline(), 60)).decode()
        app = found[1] if (found := re.search(r"app: (\S+)", line)) else ""
    try:
        async with chromium() as browser:
            pages = []
            for name in ("Anna", "Ben"):
                context = await browser.new_context(viewport={"width": 390, "height": 844})
                page = await context.new_page()
                pages.append(page)
                await page.goto(app)
                await page.get_by_placeholder("Your name").fill(name)
                await page.get_by_role("button", name="Join").click()
                await expect(page.get_by_placeholder("Your name")).to_be_hidden()
            for page, card in zip(pages, ("5", "8"), strict=True):
                await page.get_by_role("button", name=card, exact=True).click()
            for page in pages:
                await expect(page.get_by_text("Average 6.5")).to_be_visible(timeout=60_000)
                await expect(page.locator("#players li")).to_have_text(["5 Anna", "8 Ben"])
    finally:
        await stop(dev)


async def test_the_app_server_gives_the_apps_files_alone(tmp_path: Path) -> None:
    await run("init", "poker", "--template", "poker", cwd=tmp_path)
    dev = await start(tmp_path / "poker")
    assert dev.stderr is not None
    app = ""
    while not app:
        line = (await asyncio.wait_for(dev.stderr.readline(), 60)).decode()
        app = found[1] if (found := re.search(r"app: (\S+)", line)) else ""
    try:
        url = await url_of(dev)
        async with httpx.AsyncClient(base_url=app) as http:
            assert (await http.get("/machine.json")).json() == {"url": url}
            assert (await http.get("/app.js")).status_code == 200
            for path in ("/../room.ts", "/%2e%2e/room.ts", "/..%2froom.ts", "//etc/passwd"):
                assert (await http.get(path)).status_code in (400, 404), path
            foreign = await http.get("/machine.json", headers={"Host": "evil.example"})
            assert foreign.status_code == 403
    finally:
        await stop(dev)


@pytest.mark.core
def test_templates_say_what_they_need() -> None:
    for template in TEMPLATES:
        files = files_of(template, "name")
        assert {"README.md", ".gitignore", "package.json", "machinehub.toml"} <= files.keys()
        assert 'name = "name"' in files["machinehub.toml"]
        assert any(path.endswith(".test.ts") for path in files)
