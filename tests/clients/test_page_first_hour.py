"""The page around a machine: forms, clicks on the chart, countdowns, newer versions, sessions that
go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from playwright.async_api import expect

from tests.clients.test_page import active, opened, ready, tab

if TYPE_CHECKING:
    from playwright.async_api import Browser

    from tests.support import Client

ROOM = """import { assign, setup } from "xstate";
export default setup({
  delays: { soon: 600000 },
  actions: { note: assign({ said: ({ event }) => event }), fail: () => { throw new Error("first line\\nsecond line"); } },
}).createMachine({
  id: "room", context: { said: null, one: 1, two: 2 }, initial: "idle",
  states: {
    idle: { on: { VOTE: { actions: "note" }, WAIT: "waiting", FAIL: { actions: "fail" }, RING: "ringing" } },
    waiting: { after: { soon: "idle" }, on: { BACK: "idle" } },
    ringing: { after: { 20: "idle" } },
  },
});
"""
PAYLOADS = {
    "VOTE": [
        {"name": "card", "kind": "choice", "values": [1, "?"]},
        {"name": "text", "kind": "text", "optional": True},
        {"name": "sure", "kind": "boolean"},
    ]
}


async def deploy(client: Client, name: str, source: str = ROOM, **more: Any) -> str:
    return await client.deploy(source, name=name, entry="m.ts", **{"payloads": PAYLOADS} | more)


async def test_a_payload_has_a_form(client: Client, browser: Browser) -> None:
    machine = await deploy(client, "page-form")
    async with opened(browser, f"{client.url}/{machine}/s") as page:
        await ready(page)
        await page.get_by_role("button", name="VOTE", exact=True).click()
        form = page.get_by_role("form", name="Payload of VOTE")
        await form.get_by_label("card").select_option("?")
        await form.get_by_label("sure").check()
        await form.get_by_role("button", name="Send").click()
        context = page.get_by_test_id("context")
        await expect(context).to_contain_text('card: "?"')
        await expect(context).to_contain_text("sure: true")
        await expect(context).not_to_contain_text("text")
        await expect(form).to_have_count(0)


async def test_events_on_the_chart_are_buttons(client: Client, browser: Browser) -> None:
    machine = await deploy(client, "page-clicks")
    async with opened(browser, f"{client.url}/{machine}/s") as page:
        await ready(page)
        chart = page.locator(".chart")
        await chart.get_by_role("button", name="Send WAIT").click()
        await expect(active(page, "waiting")).to_be_visible()
        await expect(chart.get_by_role("button", name="Send WAIT")).to_have_count(0)
        await chart.get_by_role("button", name="Send BACK").press("Enter")
        await expect(active(page, "idle")).to_be_visible()
        await chart.get_by_role("button", name="Send VOTE").click()
        await expect(page.get_by_role("form", name="Payload of VOTE")).to_be_visible()


async def test_what_waits_counts_down(client: Client, browser: Browser) -> None:
    machine = await deploy(client, "page-timers")
    await client.http.post(f"/{machine}/s", json={"type": "WAIT"})
    async with opened(browser, f"{client.url}/{machine}/s") as page:
        await ready(page)
        timers = page.get_by_label("Timers", exact=True)
        await expect(timers).to_contain_text("after soon (10 min) in room.waiting")
        assert (await timers.locator("b").inner_text()).startswith(("9:", "10:"))
        await expect(page.locator("header .value")).to_contain_text("waiting")
        await page.get_by_role("button", name="BACK", exact=True).click()
        await expect(timers).to_have_count(0)


async def test_history_says_which_timer_and_marks_what_was_rejected(
    client: Client, browser: Browser
) -> None:
    machine = await deploy(client, "page-history")
    for event in ("NOTHING", "RING"):
        await client.http.post(f"/{machine}/s", json={"type": event})
    idle = {"condition": {"matches": "idle"}}
    assert (await client.http.post(f"/{machine}/s/wait", json=idle)).status_code == 200
    await client.http.post(f"/{machine}/s", json={"type": "FAIL"})
    async with opened(browser, f"{client.url}/{machine}/s") as page:
        await ready(page)
        await tab(page, "history")
        items = page.locator(".history li")
        await expect(items.filter(has_text="after 20 ms in ringing")).to_have_count(1)
        await expect(items.filter(has_text="NOTHING")).to_contain_text("not taken")
        rejected = page.locator(".history li.rejected")
        await expect(rejected.get_by_role("img", name="rejected")).to_be_visible()
        await rejected.get_by_role("button").click()
        detail = page.get_by_label("The input")
        await expect(detail).to_contain_text("second line")
        assert "000A" not in await detail.inner_text()


async def test_a_newer_version_is_offered(client: Client, browser: Browser) -> None:
    machine = await deploy(client, "page-newer")
    await client.http.post(f"/{machine}/s", json={"type": "WAIT"})
    async with opened(browser, f"{client.url}/{machine}/s") as page:
        await ready(page)
        await expect(page.get_by_text("is live, this session runs")).to_have_count(0)
        await deploy(client, "page-newer", ROOM + "// two")
        banner = page.get_by_text("Version 2 is live, this session runs version 1.")
        await expect(banner).to_be_visible(timeout=30_000)
        page.on("dialog", lambda dialog: dialog.accept())
        await page.get_by_role("button", name="Start anew on version 2").click()
        await expect(page.locator("header")).to_contain_text("version 2")
        await expect(active(page, "idle")).to_be_visible()
        await expect(banner).to_have_count(0)
        await tab(page, "history")
        await expect(page.locator(".history li")).to_have_count(1)


async def test_sessions_are_deleted_on_the_page(client: Client, browser: Browser) -> None:
    machine = await deploy(client, "page-deleting")
    await client.http.get(f"/{machine}/old")
    async with opened(browser, f"{client.url}/{machine}/s") as page:
        await ready(page)
        await tab(page, "sessions")
        await expect(page.locator(".sessions li")).to_have_count(2)
        page.on("dialog", lambda dialog: dialog.accept())
        await page.get_by_role("button", name="Delete old").click()
        await expect(page.locator(".sessions li")).to_have_count(1)
        found = await client.http.get(f"/api/v1/machines/{machine}/sessions/old")
        assert found.status_code == 404


async def test_warnings_are_shown_to_who_may_see_versions(client: Client, browser: Browser) -> None:
    machine = await deploy(client, "page-warnings", ROOM.replace('"note"', '"typo"'))
    async with opened(browser, f"{client.url}/{machine}/s") as page:
        await ready(page)
        await tab(page, "versions")
        await page.get_by_text("1 warning").click()
        await expect(page.locator(".warnings li")).to_contain_text(
            "no action 'typo' is implemented"
        )


async def test_forty_states_can_be_read(client: Client, browser: Browser) -> None:
    states = ", ".join(
        f's{n}: {{ on: {{ NEXT: "s{(n + 1) % 40}", SKIP: "s{(n * 7 + 3) % 40}" }} }}'
        for n in range(40)
    )
    source = f"""import {{ createMachine }} from "xstate";
    export default createMachine({{ id: "forty", initial: "s0", states: {{ {states} }} }});"""
    machine = await deploy(client, "page-forty", source)
    options = {"viewport": {"width": 1280, "height": 800}}
    async with opened(browser, f"{client.url}/{machine}/s", **options) as page:
        await ready(page)
        await page.get_by_role("button", name="Fit").click()
        sizes = await page.locator(".chart .box .name").evaluate_all(
            "(names) => names.map((name) => name.getBoundingClientRect().height)"
        )
        assert len(sizes) == 41
        assert min(sizes) >= 8
        await expect(page.locator(".carrier.near")).to_have_count(2)
        await page.locator(".chart").get_by_role("button", name="Send NEXT").click()
        await expect(active(page, "s1")).to_have_count(1)


async def test_a_phone_sees_the_whole_chart_first(client: Client, browser: Browser) -> None:
    machine = await deploy(client, "page-phone")
    options = {"viewport": {"width": 390, "height": 844}}
    async with opened(browser, f"{client.url}/{machine}/s", **options) as page:
        await ready(page)
        chart = await page.locator(".chart svg").bounding_box()
        root = await page.locator('.box[data-state="room"] .face').bounding_box()
        assert chart is not None
        assert root is not None
        assert root["x"] >= chart["x"]
        assert root["x"] + root["width"] <= chart["x"] + chart["width"]
        assert root["y"] + root["height"] <= chart["y"] + chart["height"]


async def test_the_context_stays_in_sight(client: Client, browser: Browser) -> None:
    """However many events there are."""
    events = ", ".join(f"EVENT_NUMBER_{n}: {{}}" for n in range(60))
    source = f"""import {{ createMachine }} from "xstate";
    export default createMachine({{ context: {{ answer: 42 }}, on: {{ {events} }} }});"""
    machine = await deploy(client, "page-fold", source)
    options = {"viewport": {"width": 1280, "height": 720}}
    async with opened(browser, f"{client.url}/{machine}/s", **options) as page:
        await ready(page)
        place = await page.get_by_text("answer: 42").bounding_box()
        assert place is not None
        assert place["y"] + place["height"] < 720


async def test_the_calendar_is_above_the_sessions(client: Client, browser: Browser) -> None:
    entry = {"name": "noon", "expression": "0 12 * * *", "session": "tower", "event": "WAIT"}
    deployed = await client.http.post(
        "/api/v1/deployments",
        json={
            "name": "page-calendar",
            "entry": "m.ts",
            "files": {"m.ts": ROOM},
            "cron": [entry],
            "private": False,
        },
    )
    machine = deployed.json()["machine"]["id"]
    async with opened(browser, f"{client.url}/{machine}/s") as page:
        await ready(page)
        await tab(page, "sessions")
        calendar = page.get_by_role("region", name="Calendar")
        await expect(calendar).to_contain_text("noon")
        await expect(calendar).to_contain_text("0 12 * * * (UTC)")
        await calendar.get_by_role("button").click()
        await expect(page).to_have_url(f"{client.url}/{machine}/tower")
