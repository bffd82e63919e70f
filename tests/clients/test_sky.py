"""The counter of Stately's announcement, with Stately's own packages: its command generates the
machine's file, its hook shares a session with the machine's page and `machinehub watch`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from typing import TYPE_CHECKING

from playwright.async_api import expect

from tests.clients.test_apps import APPS, count_is, served
from tests.clients.test_client import run
from tests.processes import deploy, hub_process
from tests.support import CACHE, EXAMPLES, ROOT, Client, free_port

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Browser

COMMAND = str(ROOT / "node_modules" / ".bin" / "xstate")


def app_in(folder: Path, machine: str, key: str = "any") -> Path:
    """The app as its author has it before the command ran, for that machine."""
    app = folder / "app"
    shutil.copytree(
        APPS / "sky-counter",
        app,
        ignore=shutil.ignore_patterns("node_modules", "dist", "*.sky.ts"),
    )
    (folder / "node_modules").symlink_to(ROOT / "node_modules")
    (app / "node_modules").symlink_to(APPS / "sky-counter" / "node_modules")
    source = app / "src" / "counter.tsx"
    source.write_text(source.read_text().replace("http://127.0.0.1:8787/MACHINE", machine))
    (app / ".env").write_text(f"VITE_SKY_API_KEY={key}\n")
    return app


async def test_the_announcements_counter(tmp_path: Path, browser: Browser) -> None:
    port = free_port()
    async with hub_process(tmp_path / "data", port=port) as hub:
        machine = await deploy(hub.url, (EXAMPLES / "counter.ts").read_text())
        app = app_in(tmp_path, machine)
        said = await run(COMMAND, "sky", "src/**/*.tsx", cwd=app)
        assert "updated with sky config" in said
        host = f"127.0.0.1:{port}"
        await run("npx", "vite", "build", "--logLevel", "warn", cwd=app, VITE_SKY_HOST=host)
        watch = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", "from machinehub.cli.main import main; main()"),
            *("watch", "c/shared-counter", "--json"),
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"MACHINEHUB_CACHE": str(CACHE), "MACHINEHUB_SERVER": hub.url},
        )
        try:
            async with (
                served(app / "dist") as url,
                await browser.new_context() as here,
                await browser.new_context() as there,
            ):
                stately, page = await here.new_page(), await there.new_page()
                errors: list[str] = []
                stately.on("pageerror", lambda error: errors.append(str(error)))
                await stately.goto(url)
                await expect(stately.get_by_text("connected, ")).to_be_visible()
                await page.goto(f"{machine}/shared-counter")
                await expect(stately.locator("#players")).to_have_text("3")
                await stately.get_by_role("button", name="+").click()
                await count_is(stately, 1)
                await expect(page.get_by_test_id("context")).to_contain_text("count: 1")
                await page.get_by_role("button", name="increment", exact=True).click()
                await count_is(stately, 2)
                await here.set_offline(True)
                for _ in range(3):
                    await stately.get_by_role("button", name="+").click()
                await page.get_by_role("button", name="increment", exact=True).click()
                await here.set_offline(False)
                await count_is(stately, 6)
                await expect(page.get_by_test_id("context")).to_contain_text("count: 6")
                await until_line(watch, '"count":6')
                assert not errors
        finally:
            with contextlib.suppress(ProcessLookupError):
                watch.kill()
            await watch.wait()


async def until_line(process: asyncio.subprocess.Process, part: str) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        while part not in (await process.stdout.readline()).decode().replace(" ", ""):
            pass


async def test_the_command_prints_what_is_wrong(client: Client, tmp_path: Path) -> None:
    """As it prints errors: they are one line, and its exit code is 0."""
    source = (EXAMPLES / "counter.ts").read_text() + (
        "\nexport const view = ({ snapshot }) => snapshot.context;\n"
    )
    machine = await client.deploy(source, name="sky-view")
    app = app_in(tmp_path, f"{client.url}/{machine}")
    said = await run(COMMAND, "sky", "src/**/*.tsx", cwd=app)
    assert "the machine says itself what each member sees" in said
    assert not (app / "src" / "counter.sky.ts").exists()


async def test_the_command_needs_a_key_of_the_project(tmp_path: Path) -> None:
    async with hub_process(tmp_path / "data", MACHINEHUB_TOKEN="mh_own") as hub:
        import httpx

        async with httpx.AsyncClient(
            base_url=hub.url, headers={"Authorization": "Bearer mh_own"}
        ) as http:
            files = {"c.ts": (EXAMPLES / "counter.ts").read_text()}
            body = {"name": "c", "entry": "c.ts", "files": files, "private": False}
            machine = (await http.post("/api/v1/deployments", json=body)).json()["machine"]["url"]
            path = "/api/v1/projects/default/keys"
            key = (await http.post(path, json={"name": "app"})).json()["token"]
        app = app_in(tmp_path, machine, "mhp_wrong")
        said = await run(COMMAND, "sky", "src/**/*.tsx", cwd=app)
        assert "the token is not valid here" in said
        assert not (app / "src" / "counter.sky.ts").exists()
        (app / ".env").write_text(f"VITE_SKY_API_KEY={key}\n")
        await run(COMMAND, "sky", "src/**/*.tsx", cwd=app)
        assert (app / "src" / "counter.sky.ts").exists()
