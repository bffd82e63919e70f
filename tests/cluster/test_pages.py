"""Two browser windows on two nodes share a counter, also when the node that has it is killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from tests.cluster.clusters import nats_server
from tests.cluster.test_failover import cluster, owner_of
from tests.databases import new_database
from tests.processes import deploy
from tests.support import COUNTER

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Browser, Page

pytestmark = pytest.mark.xdist_group("failover")


async def shows(page: Page, count: int) -> None:
    await expect(page.get_by_test_id("context")).to_contain_text(f"count: {count}", timeout=30_000)


async def test_two_windows_on_two_nodes(browser: Browser, postgres: str, tmp_path: Path) -> None:
    database = await new_database(postgres)
    async with nats_server() as nats, cluster(tmp_path, database, nats) as nodes:
        machine = (await deploy(nodes[0].url, COUNTER)).rsplit("/", 1)[1]
        pages = [await browser.new_page() for _ in range(3)]
        for page, node in zip(pages, nodes, strict=True):
            await page.goto(f"{node.url}/{machine}/shared")
            await shows(page, 0)
        for number, page in enumerate(pages):
            await page.get_by_role("button", name="increment", exact=True).first.click()
            for other in pages:
                await shows(other, number + 1)
        victim = await owner_of(nodes, machine, "shared")
        victim.process.kill()
        await victim.process.wait()
        survivors = [page for page, node in zip(pages, nodes, strict=True) if node is not victim]
        for page in survivors:
            await page.get_by_role("button", name="increment", exact=True).first.click()
        for page in survivors:
            await shows(page, 5)
        await survivors[0].screenshot(path=str(tmp_path / "survivor.png"))
        for page in pages:
            await page.close()
