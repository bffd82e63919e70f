"""The machine's page in a real browser (headless Chromium, over its debugging protocol)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import ClientConnection, connect

from tests.support import COUNTER, Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--remote-debugging-port=0", "about:blank",
)  # fmt: skip


class Page:
    """One tab: evaluates expressions in it."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._calls = 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        await self._connection.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while (answer := json.loads(await asyncio.wait_for(self._connection.recv(), 20))).get("id") != self._calls:
            pass
        result: dict[str, Any] = answer["result"]
        return result

    async def evaluate(self, expression: str) -> Any:
        return (await self.call("Runtime.evaluate", expression=expression, returnByValue=True))["result"].get("value")

    async def until(self, expression: str) -> None:
        for _ in range(200):
            if await self.evaluate(expression):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{expression} never held; the page says: {await self.evaluate('document.body.innerText')}")


@contextlib.asynccontextmanager
async def browser(folder: Path, url: str) -> AsyncIterator[Page]:
    program = shutil.which("chromium")
    assert program, "the page is tested in Chromium: apt-get install chromium"
    process = await asyncio.create_subprocess_exec(program, f"--user-data-dir={folder}", *FLAGS, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(30):
            while b"DevTools listening on" not in (line := await process.stderr.readline()):
                assert line, "Chromium ended"
        port = line.decode().split("ws://")[1].split("/")[0]
        import httpx

        async with httpx.AsyncClient() as http:
            tab = (await http.put(f"http://{port}/json/new?about:blank")).json()
        async with connect(tab["webSocketDebuggerUrl"], max_size=None) as connection:
            page = Page(connection)
            await page.call("Page.navigate", url=url)
            yield page
    finally:
        process.kill()
        await process.communicate()


async def test_the_page_is_live(client: Client, tmp_path: Path) -> None:
    machine = await client.deploy(COUNTER, name="on-page")
    async with browser(tmp_path, f"{client.url}/{machine}/s") as page:
        await page.until('document.querySelector("#status")?.dataset.status === "open"')
        await page.until('document.querySelector("#snapshot").textContent.includes(\'"count": 0\')')
        assert await page.evaluate('document.querySelector("#name").textContent') == "on-page"
        assert await page.evaluate('[...document.querySelectorAll("#events button")].map((b) => b.textContent).join()') == "decrement,increment"
        assert await page.evaluate('document.querySelector(".state.active").textContent') == "active"
        await client.http.post(f"/{machine}/s", json={"type": "increment"})
        await page.until('document.querySelector("#snapshot").textContent.includes(\'"count": 1\')')
        await page.evaluate('document.querySelectorAll("#events button")[1].click()')
        await page.until('document.querySelector("#snapshot").textContent.includes(\'"count": 2\') && document.querySelector("#outcome").textContent === "accepted"')
        assert (await client.http.get(f"/{machine}/s")).json()["snapshot"]["context"] == {"count": 2}


async def test_what_an_author_wrote_is_text(client: Client, tmp_path: Path) -> None:
    evil = "<img src=x onerror=document.title='owned'>"
    source = f'import {{ createMachine }} from "xstate"; export default createMachine({{ id: {json.dumps(evil)}, context: {{ {json.dumps(evil)}: {json.dumps(evil)} }}, initial: {json.dumps(evil)}, states: {{ {json.dumps(evil)}: {{ tags: {json.dumps(evil)}, description: {json.dumps(evil)}, on: {{ {json.dumps(evil)}: {{}} }} }} }} }});'
    machine = await client.deploy(source, name="evil")
    async with browser(tmp_path, f"{client.url}/{machine}/%3Cscript%3Ealert(1)%3C%2Fscript%3E") as page:
        await page.until('document.querySelector("#snapshot")?.textContent.includes("onerror")')
        assert await page.evaluate("document.images.length") == 0
        assert await page.evaluate("document.title") == "evil · machinehub"


async def test_an_unknown_machine_says_so(client: Client) -> None:
    response = await client.http.get("/Nope00", headers={"Accept": "text/html"})
    assert response.status_code == 404
    assert response.json()["code"] == "no_such_machine"
