"""The machine's page in a real browser: alive, honest about the past, and made of text whatever an
author wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
from typing import TYPE_CHECKING, Any

from playwright.async_api import expect

from machinehub.web.page import STATIC
from tests.browser import sixty_states
from tests.clients.test_client import run
from tests.edge.test_connect_tokens import new_app
from tests.support import COUNTER, EXAMPLES, ROOT, Client, running_hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser, Page, Route


@contextlib.asynccontextmanager
async def opened(browser: Browser, url: str, **options: Any) -> AsyncIterator[Page]:
    """A page in a window of its own. It asks nobody but its hub for anything, and reports no
    error.
    """
    context = await browser.new_context(**options)
    page = await context.new_page()
    complaints: list[str] = []
    page.on(
        "console",
        lambda message: (
            complaints.append(message.text)
            if message.type == "error" and "net::ERR" not in message.text
            else None
        ),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(url[: url.index("/", 8)])
            else complaints.append(f"asked {request.url}")
        ),
    )
    try:
        await page.goto(url)
        yield page
        assert not [text for text in complaints if "401" not in text and "404" not in text], (
            complaints
        )
    finally:
        await context.close()


async def ready(page: Page) -> None:
    await expect(page.locator(".chart")).to_have_attribute("data-ready", "true")
    await expect(page.locator("header .status")).to_have_text("connected")


def active(page: Page, name: str) -> Any:
    return page.locator(".box.active > .name", has_text=re.compile(f"^{re.escape(name)}$"))


async def tab(page: Page, name: str) -> None:
    await page.get_by_role("tab", name=name).click()


async def test_the_page_passes_its_own_tests() -> None:
    await run("npx", "vitest", "run", cwd=ROOT / "clients" / "page")


def test_it_is_small_enough() -> None:
    size = sum(
        len(gzip.compress(path.read_bytes(), mtime=0))
        for path in STATIC.iterdir()
        if path.suffix in (".js", ".css", ".html", ".svg") and path.name != "client.js"
    )
    assert size < 700_000


async def test_the_chart_is_alive(client: Client, browser: Browser) -> None:
    machine = await client.deploy((EXAMPLES / "checkout.ts").read_text(), name="page-checkout")
    async with opened(browser, f"{client.url}/{machine}/s") as page:
        await ready(page)
        await expect(page.locator("h1")).to_have_text("page-checkout")
        await expect(active(page, "cart")).to_be_visible()
        await expect(page.get_by_role("button", name="CARD", exact=True)).to_have_count(0)
        await page.locator(".others summary").click()
        await expect(page.get_by_role("button", name="CARD", exact=True)).to_be_disabled()
        await page.get_by_role("button", name="ADD", exact=True).click()
        await expect(page.locator(".outcome")).to_have_text("ADD: accepted, seq 2")
        await expect(page.locator(".words.taken")).to_contain_text("ADD")
        await expect(page.get_by_test_id("context")).to_contain_text("items: 1")
        await expect(page.locator(".tree .leaf .changed")).to_have_text("1")
        await client.http.post(f"/{machine}/s", json={"type": "NEXT"})
        await expect(active(page, "shipping")).to_be_visible()
        await expect(page.locator(".label .words.taken")).to_contain_text("NEXT")
        await page.get_by_label("Event type").fill("ADDRESS")
        await page.get_by_label("Payload as JSON").fill('{"value": "1 Main St"}')
        await page.get_by_role("button", name="Send", exact=True).click()
        await expect(page.get_by_test_id("context")).to_contain_text('address: "1 Main St"')
        await page.get_by_label("Payload as JSON").fill("{")
        await page.get_by_role("button", name="Send", exact=True).click()
        await expect(page.locator(".outcome")).to_contain_text("Not sent")
        await page.get_by_label("Event type").fill("presence.joined")
        await page.get_by_label("Payload as JSON").fill("")
        await page.get_by_role("button", name="Send", exact=True).click()
        await expect(page.locator(".outcome")).to_contain_text("rejected, invalid_event")


async def test_the_past_can_be_seen_and_gone_on_from(client: Client, browser: Browser) -> None:
    machine = await client.deploy((EXAMPLES / "checkout.ts").read_text(), name="page-past")
    for event in (
        {"type": "ADD"},
        {"type": "NEXT"},
        {"type": "ADDRESS", "value": "x"},
        {"type": "NEXT"},
    ):
        await client.http.post(f"/{machine}/s", json=event)
    async with opened(browser, f"{client.url}/{machine}/s") as page:
        await ready(page)
        await tab(page, "history")
        steps = page.locator(".history li")
        await expect(steps).to_have_count(5)
        await steps.nth(2).get_by_role("button").click()
        await expect(page.locator(".banner")).to_contain_text("As it was after input 3")
        await expect(active(page, "shipping")).to_be_visible()
        await expect(page.locator(".label .words.taken")).to_contain_text("NEXT")
        await expect(page.get_by_test_id("context")).to_contain_text('address: ""')
        assert page.url.endswith("/s?at=3"), "an input can be sent to somebody"
        await page.reload()
        await expect(page.locator(".banner")).to_contain_text("As it was after input 3")
        await expect(page.locator(".history li button[aria-pressed=true]")).to_contain_text("NEXT")
        await tab(page, "live")
        await page.get_by_label("Event type").fill("BACK")
        await page.get_by_role("button", name="Send", exact=True).click(force=True)
        await expect(page.locator(".outcome")).to_have_text("Not sent: this is the past")
        await tab(page, "history")
        await steps.nth(2).get_by_role("button").press("ArrowUp")
        await expect(steps.nth(1).get_by_role("button")).to_be_focused()
        await client.http.post(f"/{machine}/s", json={"type": "BACK"})
        await expect(steps).to_have_count(6)
        await expect(active(page, "shipping")).to_be_visible()
        await page.get_by_role("button", name="Fork from here").click()
        await expect(page.locator("header .session")).not_to_have_text("s")
        await expect(page.locator("header .step")).to_have_text("seq 3")
        await ready(page)
        fork = page.url.rsplit("/", 1)[1]
        assert fork != "s"
        assert "at=" not in page.url
        await tab(page, "live")
        await page.get_by_role("button", name="BACK", exact=True).press("Enter")
        await expect(active(page, "cart")).to_be_visible()
        await expect(page.get_by_role("button", name="BACK", exact=True)).to_be_focused()
        assert (await client.http.get(f"/{machine}/s")).json()["seq"] == 6
        await tab(page, "sessions")
        await expect(page.locator(".sessions li")).to_have_count(2)
        await page.locator(".sessions button", has_text="seq 6").click()
        await expect(page.locator("header .session")).to_have_text("s")
        await page.go_back()
        await expect(page.locator("header .session")).to_have_text(fork)
        await page.get_by_role("tab", name="sessions").click()
        await page.get_by_role("button", name="New session").click()
        await expect(page.locator("header")).to_contain_text("seq 1")


async def test_history_goes_on_through_rejections_and_gaps(
    client: Client, browser: Browser
) -> None:
    source = (
        'import { assign, createMachine } from "xstate"; export default createMachine({ context: '
        "{ n: 0 }, on: { ADD: { actions: assign({ n: ({ context }) => context.n + 1 }) }, BAD: { "
        'actions: () => { throw new Error("bad"); } } } });'
    )
    machine = await client.deploy(source, name="page-long-history")
    async with (
        opened(browser, f"{client.url}/{machine}/s") as page,
        client.socket(f"{machine}/s") as socket,
    ):
        await ready(page)
        await tab(page, "history")
        for _ in range(3):
            await socket.event("ADD")
        await asyncio.gather(
            *(socket.send_raw({"type": "event", "event": {"type": "BAD"}}) for _ in range(230))
        )
        await socket.event("ADD")
        await expect(page.locator(".history li").last).to_contain_text("5ADD")
        await expect(page.locator(".history li.rejected")).to_have_count(230)
        await page.locator(".history li.rejected button").first.click()
        await expect(page.get_by_label("The input")).to_contain_text("machine_error: bad")
        await asyncio.gather(
            *(socket.send_raw({"type": "event", "event": {"type": "ADD"}}) for _ in range(500))
        )
        await expect(page.locator("header .step")).to_have_text("seq 505")
        await expect(page.locator(".history li").last).to_contain_text("505ADD")
        seqs = [int(text) for text in await page.locator(".history .seq").all_inner_texts()]
        assert sorted(set(seqs)) == list(range(min(seqs), 506)), "there are gaps"
        shown, older = (
            page.locator(".history .seq"),
            page.get_by_role("button", name="Older inputs"),
        )
        while await older.count():
            before = await shown.count()
            await older.click()
            await expect(shown).not_to_have_count(before)
        seqs = [int(text) for text in await shown.all_inner_texts()]
        assert sorted(set(seqs)) == list(range(1, 506))


async def test_what_cannot_be_shown_is_said(client: Client, browser: Browser) -> None:
    machine = await client.deploy(COUNTER, name="page-gone")
    await client.http.post(f"/{machine}/s", json={"type": "increment"})
    async with opened(browser, f"{client.url}/{machine}/s") as page:
        await ready(page)
        await page.route(
            "**/s?at=*",
            lambda route: route.fulfill(
                status=404,
                content_type="application/json",
                body='{"code":"history_pruned","detail":"it is not kept"}',
            ),
        )
        await tab(page, "history")
        await page.locator(".history li").first.get_by_role("button").click()
        await expect(page.locator(".banner")).to_contain_text(
            "Input 1 cannot be shown: it is not kept"
        )
        await expect(page.locator(".box.active")).to_have_count(0)
        await expect(page.get_by_role("button", name="Fork from here")).to_have_count(0)
        await page.get_by_role("button", name="Back to live").click()
        await expect(page.locator(".box.active")).to_have_count(2)
        await client.http.delete(f"/api/v1/machines/{machine}/sessions/s")
        await expect(page.locator(".banner")).to_contain_text("the session was deleted")
        await tab(page, "live")
        await page.locator(".others summary").click()
        await expect(page.get_by_role("button", name="increment", exact=True)).to_be_disabled()


async def test_a_chart_that_nobody_can_lay_out_is_shown_without_arrows(
    client: Client, browser: Browser
) -> None:
    states = ", ".join(
        f's{n}: {{ on: {{ A: "s{(n + 1) % 150}", B: "s{(n * 37) % 150}", C: "s{(n * 71) % 150}" '
        f"}} }}"
        for n in range(150)
    )
    machine = await client.deploy(
        (
            f'import {{ createMachine }} from "xstate"; export default createMachine({{ id: "web", '
            f'initial: "s0", states: {{ {states} }} }});'
        ),
        name="page-web",
    )
    async with opened(browser, f"{client.url}/{machine}/s") as page:
        await expect(page.get_by_text("drawing the chart")).to_be_visible()
        await expect(page.locator(".chart")).to_have_attribute("data-ready", "true")
        await expect(active(page, "s0")).to_have_count(1)
        await page.get_by_role("button", name="A", exact=True).click()
        await expect(active(page, "s1")).to_have_count(1)


async def test_versions_are_compared(client: Client, browser: Browser) -> None:
    machine = await client.deploy(COUNTER, name="page-versions")
    await client.http.get(f"/{machine}/old")
    await client.deploy(
        COUNTER.replace("decrement: {", "reset: { target: 'idle' },\n        decrement: {").replace(
            "states: {\n", "states: {\n    idle: {},\n"
        ),
        name="page-versions",
    )
    async with opened(browser, f"{client.url}/{machine}/old") as page:
        await ready(page)
        await expect(page.locator("header")).to_contain_text("version 1")
        await tab(page, "versions")
        await page.locator(".versions button", has_text="version 2").click()
        await expect(page.get_by_text("Chart of version 2")).to_be_visible()
        await expect(page.locator(".box > .name", has_text="idle")).to_be_visible()
        await expect(page.locator(".box.active")).to_have_count(0)
        await page.get_by_label("What changed since").select_option("1")
        await expect(page.locator(".differences li")).to_have_text(
            ["added idle+ atomic", "added active: reset+ reset → idle"]
        )
        await expect(page.locator(".box.added > .name")).to_have_text("idle")
        await page.get_by_role("button", name="Back", exact=True).click()
        await expect(page.locator(".box.active")).to_have_count(2)


async def test_what_an_author_wrote_is_text(client: Client, browser: Browser) -> None:
    evil = (
        "<img src=x "
        "onerror=document.title='owned'><script>document.title='owned'</script>\"'`&lt;\u202e"
    )
    quoted = json.dumps(evil)
    source = f"""import {{ createMachine, assign }} from "xstate"; export default createMachine({{ id: {quoted}, description: {quoted}, context: {{ {quoted}: {quoted}, "__proto__x": {{ constructor: 1 }} }}, initial: {quoted},
      states: {{ {quoted}: {{ tags: {quoted}, description: {quoted}, entry: {{ type: {quoted} }}, on: {{ {quoted}: {{ guard: {{ type: {quoted} }}, target: "end" }}, toString: {{}}, "xstate": {{}} }} }}, end: {{ type: "final" }}, constructor: {{}} }} }}, {{ guards: {{ {quoted}: () => true }}, actions: {{ {quoted}: () => {{}} }} }});"""
    machine = await client.deploy(source, name="page-evil")
    async with opened(
        browser, f"{client.url}/{machine}/%3Cscript%3Edocument.title=1%3C%2Fscript%3E"
    ) as page:
        await ready(page)
        for name in ("live", "history", "sessions", "versions", "share"):
            await tab(page, name)
            await page.wait_for_timeout(100)
        assert (
            await page.evaluate(
                "document.images.length + document.querySelectorAll('script:not([src])').length"
            )
            == 0
        )
        assert await page.title() == "page-evil · machinehub"
        await tab(page, "live")
        await page.locator(".events button").filter(has_text="img").first.click()
        await expect(page.locator(".outcome")).to_contain_text("accepted, seq 2")
        assert await page.title() == "page-evil · machinehub"


async def test_a_hub_with_tokens_shows_what_the_token_may_see(
    tmp_path: Path, browser: Browser
) -> None:
    async with running_hub(tmp_path, token="secret-token") as client:
        machine = await client.deploy(COUNTER)
        async with opened(browser, f"{client.url}/{machine}/s") as page:
            await ready(page)
            await page.get_by_role("button", name="increment", exact=True).click()
            await expect(page.get_by_test_id("context")).to_contain_text("count: 1")
            await tab(page, "history")
            await expect(page.locator(".token")).to_contain_text("to those who have a token")
            await page.locator(".token input").fill("☃ no header")
            await page.get_by_role("button", name="Use token").click()
            await expect(page.locator(".token [role=status]")).to_contain_text("letters, digits")
            # The answer to a wrong one comes when the right one was given already.
            is_given = asyncio.Event()

            async def hold(route: Route) -> None:
                if route.request.headers.get("authorization") == "Bearer wrong":
                    await is_given.wait()
                await route.continue_()

            await page.route("**/journal*", hold)
            await page.locator(".token input").fill("wrong")
            await page.get_by_role("button", name="Use token").click()
            await page.locator(".token input").fill("secret-token")
            await page.get_by_role("button", name="Use token").click()
            is_given.set()
            await expect(page.locator(".history li")).to_have_count(2)


async def test_who_is_here(client: Client, browser: Browser) -> None:
    machine = await client.deploy(COUNTER, name="page-people")
    async with opened(browser, f"{client.url}/{machine}/s") as one:
        await ready(one)
        async with opened(browser, f"{client.url}/{machine}/s") as two:
            await ready(two)
            await expect(one.locator(".people li")).to_have_count(2)
            await expect(one.locator(".people .self")).to_have_count(1)
            me = await two.locator(".people .self").inner_text()
            await two.reload()
            await expect(two.locator(".people .self")).to_have_text(me)
            await expect(one.locator("header")).to_contain_text("2 here")


async def test_it_can_be_used_without_a_mouse(client: Client, browser: Browser) -> None:
    machine = await client.deploy((EXAMPLES / "media-player.ts").read_text(), name="page-keys")
    async with opened(
        browser, f"{client.url}/{machine}/s", viewport={"width": 390, "height": 800}
    ) as page:
        await ready(page)
        content = page.locator(".chart svg > g")
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.tagName") == "svg"
        await page.keyboard.press("0")
        before = await content.get_attribute("transform")
        for key in ("ArrowLeft", "+", "-", "+"):
            await page.keyboard.press(key)
        assert await content.get_attribute("transform") != before
        await page.keyboard.press("0")
        assert await content.get_attribute("transform") == before
        await page.get_by_role("tab", name="live").focus()
        await page.keyboard.press("ArrowRight")
        await expect(page.get_by_role("tab", name="history")).to_have_attribute(
            "aria-selected", "true"
        )
        await page.keyboard.press("ArrowLeft")
        await page.get_by_role("button", name="PLAY", exact=True).focus()
        await page.keyboard.press("Enter")
        await expect(active(page, "playing")).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            "nothing is wider than a phone"
        )


async def test_more_sessions_than_a_page_lists(client: Client, browser: Browser) -> None:
    """The one that is open is always there, however many are before it; what comes meanwhile shows
    by itself.
    """
    machine = await client.deploy(COUNTER, name="page-many")
    await asyncio.gather(*(client.http.put(f"/{machine}/s{number:03}") for number in range(120)))
    async with opened(browser, f"{client.url}/{machine}/s119") as page:
        await ready(page)
        await tab(page, "sessions")
        listed = page.locator(".sessions li")
        await expect(listed).to_have_count(101)
        await expect(page.locator(".sessions button[aria-current=true]")).to_contain_text("s119")
        await page.get_by_role("button", name="More sessions").click()
        await expect(listed).to_have_count(120)
        await client.http.put(f"/{machine}/a-new-one")
        await expect(listed.first).to_contain_text("a-new-one")
        await tab(page, "versions")
        await expect(page.locator(".versions li")).to_have_count(1)
        await client.deploy(COUNTER + "\n", name="page-many")
        await expect(page.locator(".versions li")).to_have_count(2)


async def test_sixty_states_under_fire(client: Client, browser: Browser) -> None:
    """Updates come as fast as they are sent; in the end the page shows the last one, and clicks
    were not lost.
    """
    machine = await client.deploy(sixty_states(), name="page-sixty")
    async with (
        opened(browser, f"{client.url}/{machine}/s") as page,
        client.socket(f"{machine}/s") as socket,
    ):
        await ready(page)
        assert await page.locator(".box").count() == 65
        await expect(active(page, "queued")).to_be_in_viewport()
        assert (await active(page, "queued").bounding_box())["height"] > 9, (
            "names can be read, though the chart does not fit"
        )

        async def fire() -> None:
            for _ in range(100):
                await socket.event("TICK")
                await asyncio.sleep(0.01)

        firing = asyncio.create_task(fire())
        for _ in range(5):
            await page.get_by_role("button", name="TICK", exact=True).click()
        await firing
        await expect(page.get_by_test_id("context")).to_contain_text("steps: 105")
        for step in ("assigned", "started", "waiting", "reviewed", "signed"):
            await socket.event("NEXT" if step != "signed" else "REJECT")
        await expect(active(page, "assigned")).to_be_in_viewport()
        await page.get_by_role("button", name="Fit").click()
        await expect(page.locator(".box .name", has_text="aftercare")).to_be_in_viewport()


async def test_unknown_machines_and_the_hubs_own_page(client: Client, browser: Browser) -> None:
    assert (await client.http.get("/Nope00/s")).json()["code"] == "no_such_machine"
    async with opened(browser, f"{client.url}/Nope00/s") as page:
        await expect(page.get_by_role("alert")).to_contain_text("no_such_machine")
    assert (await client.http.get("/Nope00/s", headers={"Accept": "text/html"})).status_code == 404
    await client.deploy(COUNTER, name="page-listed")
    async with opened(browser, f"{client.url}/") as page:
        await page.get_by_role("link", name="page-listed").click()
        await expect(page.locator("header .session")).to_have_text("lobby")
        await ready(page)


async def test_how_the_page_is_served(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="page-served")
    page = await client.http.get(f"/{machine}", headers={"Accept": "text/html"})
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'self';" in policy
    (script,) = re.findall(r'src="(/assets/[^"]+\.js)"', page.text)
    asset = await client.http.get(script)
    assert asset.headers["content-encoding"] == "gzip"
    assert "immutable" in asset.headers["cache-control"]
    plain = await client.http.get(script, headers={"Accept-Encoding": "identity"})
    assert plain.text == asset.text
    shared = await client.http.get(
        "/assets/client.js", headers={"Origin": "http://elsewhere.example"}
    )
    assert shared.headers["access-control-allow-origin"] == "*"
    for name in ("nothing.js", "..%2fpage.py", "client.js.gz", "__init__.py", "%00"):
        assert (await client.http.get(f"/assets/{name}")).status_code == 404, name


async def test_a_private_machine_is_opened_with_a_connect_token(
    tmp_path: Path, browser: Browser
) -> None:
    async with running_hub(tmp_path, token="mh_own") as hub:
        app = await new_app(hub)
        url = f"{hub.url}/{app.machine}/s"
        async with opened(browser, url) as ada, opened(browser, url) as operator:
            for page, token in ((ada, app.token("ada", roles=["editor"])), (operator, "mh_own")):
                await expect(page.locator(".token")).to_contain_text("this machine's sessions")
                await page.locator(".token input").fill(token)
                await page.get_by_role("button", name="Use token").click()
                await ready(page)
                await expect(page.locator("header")).to_contain_text("private")
            await expect(operator.locator(".people")).to_contain_text("ada · editor")
            await expect(ada.get_by_role("button", name="Revoke")).to_have_count(0)
            operator.on("dialog", lambda dialog: dialog.accept())
            await operator.get_by_role("button", name="Revoke").click()
            await expect(operator.get_by_role("status").filter(has_text="revoked")).to_be_visible()
            await expect(ada.locator(".banner .token")).to_be_visible()
            await expect(operator.locator(".people li")).to_have_count(1)
