"""The page in Chromium: how soon it is seen, and whether it still listens while a large chart
changes fifty times a second.

First paint is the browser's own `first-contentful-paint`. Input is measured by the browser too
(Event Timing): from a click to the frame after it, for real clicks on a button, while another
client sends 50 events a second to a machine with 60 states.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from bench.hub import COUNTER, BenchHub
from tests.browser import chromium, sixty_states

if TYPE_CHECKING:
    from playwright.async_api import Browser

SECONDS = 10
PER_SECOND = 50
OBSERVE = """
window.clicks = []; window.frames = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries())
    if (["pointerdown", "click"].includes(entry.name)) clicks.push(entry.duration);
}).observe({ type: "event", durationThreshold: 16, buffered: true });
const frame = () => { frames++; requestAnimationFrame(frame); };
requestAnimationFrame(frame);
"""


async def paint(browser: Browser, url: str) -> tuple[float, float]:
    """Milliseconds to the first paint, and to the chart."""
    context = await browser.new_context()
    page = await context.new_page()
    began = time.perf_counter()
    await page.goto(url)
    await page.wait_for_selector('.chart[data-ready="true"] .box')
    chart_ms = (time.perf_counter() - began) * 1000
    first = await page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )
    await context.close()
    return first, chart_ms


async def under_fire(browser: Browser, url: str) -> dict[str, Any]:
    context = await browser.new_context(viewport={"width": 1280, "height": 800})
    page = await context.new_page()
    await page.goto(f"{url}/busy")
    await page.wait_for_selector('.chart[data-ready="true"]')
    await page.evaluate(OBSERVE)
    seen: set[str] = set()
    async with connect(
        f"{url.replace('http', 'ws', 1)}/busy", subprotocols=[Subprotocol("machinehub.v1")]
    ) as socket:

        async def fire() -> int:
            began, sent = time.perf_counter(), 0
            while (now := time.perf_counter() - began) < SECONDS:
                event = {"type": ["NEXT", "NEXT", "TICK", "CANCEL", "REOPEN"][sent % 5]}
                await socket.send(json.dumps({"type": "event", "event": event}))
                sent += 1
                await asyncio.sleep(max(0.0, sent / PER_SECOND - now))
            return sent

        async def drain() -> None:
            async for _ in socket:
                pass

        draining = asyncio.create_task(drain())
        firing = asyncio.create_task(fire())
        clicks = 0
        before = await page.evaluate("frames")
        while not firing.done():
            await page.get_by_role("button", name="TICK", exact=True).click()
            seen.add(await page.locator("header .step").inner_text())
            clicks += 1
            await asyncio.sleep(0.2)
        sent = await firing
        frames = (await page.evaluate("frames")) - before
        await page.wait_for_timeout(500)
        seq = (await asyncio.to_thread(httpx.get, f"{url}/busy")).json()["seq"]
        shown = await page.locator("header .step").inner_text()
        draining.cancel()
    durations = await page.evaluate("clicks")
    await context.close()
    return {
        "clicks": clicks,
        "sent": sent,
        "frames_per_s": frames / SECONDS,
        "durations": sorted(durations),
        "seq": seq,
        "shown": shown,
    }


async def measured(data: str) -> list[tuple[str, str, str]]:
    with BenchHub(data) as hub:
        async with httpx.AsyncClient(base_url=hub.url, timeout=30) as http, chromium() as browser:
            urls = []
            for name, source in (("small", COUNTER), ("sixty", sixty_states())):
                answer = (
                    await http.post(
                        "/api/v1/deployments",
                        json={"name": name, "entry": "m.ts", "files": {"m.ts": source}},
                    )
                ).json()
                urls.append(f"{hub.url}/{answer['machine']['id']}")
            await paint(browser, urls[0] + "/warm")
            firsts, charts = zip(
                *[await paint(browser, f"{urls[0]}/p{number}") for number in range(7)], strict=True
            )
            large = [(await paint(browser, f"{urls[1]}/p{number}"))[1] for number in range(5)]
            fire = await under_fire(browser, urls[1])
    assert fire["shown"] == f"step {fire['seq']}", fire
    assert fire["seq"] == 1 + fire["sent"] + fire["clicks"], "input was dropped"
    slow = fire["durations"]
    return [
        (
            "first paint of the page, warm hub, p50",
            f"{statistics.median(firsts):.0f} ms",
            "1 000 ms",
        ),
        ("its chart is drawn: the counter, p50", f"{statistics.median(charts):.0f} ms", ""),
        ("its chart is drawn: 60 states, p50", f"{statistics.median(large):.0f} ms", ""),
        (
            f"{PER_SECOND} updates a second on 60 states: frames per second",
            f"{fire['frames_per_s']:.0f}",
            "",
        ),
        (f"clicks meanwhile, of which lost ({fire['clicks']} clicks)", "0", "0"),
        (
            "from a click to the next frame then, p50 and worst",
            f"{slow[len(slow) // 2] if slow else 16:.0f} ms, {slow[-1] if slow else 16:.0f} ms",
            "",
        ),
    ]


def page(data: str) -> list[tuple[str, str, str]]:
    Path(data).mkdir(exist_ok=True)
    return asyncio.run(measured(data))
