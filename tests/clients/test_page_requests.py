"""The page on what a machine asks of the world."""

from __future__ import annotations

from typing import TYPE_CHECKING

from playwright.async_api import expect

from tests.clients.test_page import opened, ready, tab
from tests.effects.test_broker import deployed, send
from tests.effects.world import world
from tests.support import running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Browser


async def test_requests_are_seen(tmp_path: Path, browser: Browser) -> None:
    """One that waits, and how it ended; in the history beside the input that asked."""
    async with (
        world() as there,
        running_hub(tmp_path, workers=1, egress_networks="127.0.0.0/8") as client,
    ):
        machine = await deployed(client)
        await send(client, machine, "s", {"type": "fetch", "url": there.url + "/wait"})
        await until(lambda: there.under_way)
        async with opened(browser, f"{client.url}/{machine}/s") as page:
            await ready(page)
            requests = page.get_by_label("Requests", exact=True)
            await expect(requests).to_contain_text(f"GET {there.url}/wait")
            await expect(requests).to_contain_text("waits for its answer")
            there.let_go.set()
            await expect(requests).to_contain_text("answered 200 in")
            await tab(page, "history")
            history = page.locator(".history")
            await expect(history).to_contain_text(f"asks GET {there.url}/wait: answered 200")
            await history.get_by_role("button").filter(has_text="answer 1: 200").click()
            await expect(page.get_by_label("The input")).to_contain_text('text: "waited"')
