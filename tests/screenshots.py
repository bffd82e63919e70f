"""`make screenshots`: six machines as a person sees them, into build/screenshots.

Made to be looked at.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.browser import chromium, sixty_states
from tests.support import EXAMPLES, ROOT, Client, running_hub

if TYPE_CHECKING:
    from playwright.async_api import Browser

OUT: Final = ROOT / "build" / "screenshots"
DESKTOP: Final = {"width": 1280, "height": 800}
PHONE: Final = {"width": 390, "height": 844}
SHOTS: Final[list[tuple[str, str, list[dict[str, Any]], dict[str, int], str, str]]] = [
    ("small", "counter.ts", [{"type": "increment"}] * 3, DESKTOP, "light", "live"),
    (
        "nested",
        "checkout.ts",
        [{"type": "ADD"}, {"type": "NEXT"}, {"type": "ADDRESS", "value": "1 Main St"}],
        DESKTOP,
        "light",
        "history",
    ),
    (
        "parallel",
        "media-player.ts",
        [{"type": "PLAY"}, {"type": "LOUDER"}],
        DESKTOP,
        "light",
        "live",
    ),
    ("sixty", "", [{"type": "NEXT"}] * 3, DESKTOP, "light", "share"),
    ("dark", "approval.ts", [{"type": "SUBMIT"}, {"type": "APPROVE"}], DESKTOP, "dark", "sessions"),
    ("phone", "tic-tac-toe.ts", [{"type": "JOIN"}], PHONE, "light", "live"),
]


async def shoot(
    browser: Browser,
    client: Client,
    shot: tuple[str, str, list[dict[str, Any]], dict[str, int], str, str],
) -> None:
    name, example, events, viewport, scheme, tab = shot
    machine = await client.deploy(
        sixty_states() if not example else (EXAMPLES / example).read_text(),
        name=f"{name}-{example[:-3] or 'machine'}",
    )
    for event in events:
        await client.http.post(f"/{machine}/demo", json=event)
    context = await browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
    page = await context.new_page()
    await page.goto(f"{client.url}/{machine}/demo")
    await page.wait_for_selector('.chart[data-ready="true"]')
    await page.get_by_role("tab", name=tab).click()
    await page.wait_for_timeout(500)
    await page.screenshot(path=OUT / f"{name}.png", full_page=viewport is PHONE)
    await context.close()


async def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        async with running_hub(Path(folder)) as client, chromium() as browser:
            for shot in SHOTS:
                await shoot(browser, client, shot)
                print(OUT / f"{shot[0]}.png")


if __name__ == "__main__":
    asyncio.run(main())
