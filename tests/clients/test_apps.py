"""The example apps, built as a user builds them: two windows share a counter, offline and through a
restart of the hub.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from playwright.async_api import expect

from tests.clients.test_client import run
from tests.processes import deploy, hub_process, until_ready
from tests.support import CACHE, ROOT, Client, free_port, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser, Page

APPS = ROOT / "examples" / "apps"


@contextlib.asynccontextmanager
async def served(folder: Path) -> AsyncIterator[str]:
    port = free_port()
    server = subprocess.Popen(  # noqa: ASYNC220 - it serves files until the block ends
        [
            sys.executable,
            "-m",
            "http.server",
            str(port),
            "--bind",
            "127.0.0.1",
            "--directory",
            str(folder),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:

        async def answers() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            return True

        await until(answers)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


async def built_counter(folder: Path, server: str) -> Path:
    """The React counter for a hub, built."""
    app = folder / "app"
    shutil.copytree(
        APPS / "react-counter",
        app,
        ignore=shutil.ignore_patterns("node_modules", "dist", "*.hub.ts"),
    )
    (folder / "node_modules").symlink_to(ROOT / "node_modules")
    await run(
        sys.executable,
        "-c",
        "from machinehub.cli.main import main; main()",
        "types",
        "c",
        "-o",
        str(app / "src" / "counter.hub.ts"),
        MACHINEHUB_SERVER=server,
        MACHINEHUB_CACHE=str(CACHE),
        cwd=folder,
    )
    await run("npx", "tsc", "--noEmit", "--preserveSymlinks", cwd=app)
    await run("npx", "vite", "build", "--logLevel", "warn", cwd=app)
    return app / "dist"


async def count_is(page: Page, count: int) -> None:
    await expect(page.locator("h1")).to_have_text(str(count))


async def test_two_windows_share_the_react_counter(tmp_path: Path, browser: Browser) -> None:
    port = free_port()
    async with hub_process(tmp_path / "data", port=port) as hub:
        machine = await deploy(hub.url)
        dist = await built_counter(tmp_path, hub.url)
        async with (
            served(dist) as url,
            await browser.new_context() as here,
            await browser.new_context() as there,
        ):
            one, two = await here.new_page(), await there.new_page()
            errors: list[str] = []
            for page in (one, two):
                page.on("pageerror", lambda error: errors.append(str(error)))
                await page.goto(url)
            await expect(one.get_by_text("2 here")).to_be_visible()
            await one.get_by_role("button", name="+").click()
            await two.get_by_role("button", name="+").click()
            await count_is(one, 2)
            await count_is(two, 2)

            await here.set_offline(True)
            for _ in range(5):
                await one.get_by_role("button", name="+").click()
            await two.get_by_role("button", name="\N{MINUS SIGN}").click()
            await here.set_offline(False)
            await count_is(one, 6)
            await count_is(two, 6)

            hub.process.send_signal(signal.SIGKILL)
            await hub.process.wait()
            await expect(one.get_by_text("reconnecting")).to_be_visible()
            await one.get_by_role("button", name="+").click()
            async with hub_process(tmp_path / "data", port=port) as again:
                await until_ready(again.url)
                await count_is(one, 7)
                await count_is(two, 7)
                await expect(two.get_by_text("2 here")).to_be_visible()
                await two.get_by_role("button", name="+").click()
                await count_is(one, 8)

                live = await there.new_page()
                await live.goto(f"{machine}/shared-counter")
                await expect(live.get_by_test_id("context")).to_contain_text("count: 8")
            assert not errors


async def test_a_page_without_a_bundler(client: Client, browser: Browser) -> None:
    machine = await client.deploy((ROOT / "examples" / "counter.ts").read_text(), name="plain")
    async with served(APPS / "plain-page") as url, await browser.new_context() as context:
        page = await context.new_page()
        await page.goto(f"{url}/?machine={client.url}/{machine}")
        await expect(page.locator("#status")).to_have_text("open, 1 here")
        await page.get_by_role("button", name="+").click()
        await expect(page.locator("#count")).to_have_text("1")


async def test_a_script_in_node(client: Client) -> None:
    machine = await client.deploy((ROOT / "examples" / "counter.ts").read_text(), name="script")
    assert "0 became 1" in await run(
        "node", "index.mjs", f"{client.url}/{machine}", "from node", cwd=APPS / "node-script"
    )
    usage = await asyncio.create_subprocess_exec(
        "node", "index.mjs", cwd=APPS / "node-script", stderr=subprocess.DEVNULL, env=os.environ
    )
    assert await usage.wait() == 2
