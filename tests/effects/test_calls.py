"""Machines call machines, within a project: each call is applied once, and circles end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.durable import hub_on
from tests.effects.test_broker import FETCHER, came, context, effects, send, sqlite
from tests.support import until

if TYPE_CHECKING:
    from pathlib import Path

ORDERS = """
import { assign, setup } from "xstate";
export default setup({}).createMachine({
  context: { paid: [], by: null },
  on: {
    PAID: { actions: assign({ paid: ({ context, event }) => [...context.paid, event.cents], by: ({ event }) => event.sender }) },
    BAD: { actions: () => { throw new Error("no"); } },
  },
});
"""
PING = """
import { fromPromise, setup, assign } from "xstate";
const call = fromPromise(async ({ input }) => {
  const answer = await fetch(input.url, { method: "POST", body: JSON.stringify({ type: "PING", url: input.back, back: input.url }) });
  return answer.status;
});
export default setup({ actors: { call } }).createMachine({
  context: { pings: 0, got: [], why: [] },
  initial: "idle",
  on: { PING: { target: ".calling", reenter: true, actions: assign({ pings: ({ context }) => context.pings + 1 }) } },
  states: {
    idle: {},
    calling: { invoke: { src: "call", input: ({ event }) => event,
      onDone: { target: "idle", actions: assign({ got: ({ context, event }) => [...context.got, event.output] }) },
      onError: { target: "idle" } } },
  },
});
"""


def call(url: str, event: Any = None, method: str = "POST") -> dict[str, Any]:
    init = {"method": method} | ({"body": event} if event is not None else {})
    return {"type": "fetch", "url": url, "init": init}


async def test_an_event_for_another_machine(database_url: str, tmp_path: Path) -> None:
    async with hub_on(database_url, tmp_path) as client:
        orders = await client.deploy(ORDERS, name="orders", private=True)
        machine = await client.deploy(FETCHER, name="caller")
        event = '{"type":"PAID","cents":5,"sender":{"id":"forged"}}'
        await send(client, machine, "s", call("hub:/orders/42%2F1", event))
        [got] = (await came(client, machine, "s"))["got"]
        assert got["status"] == 200
        assert '"outcome":"accepted"' in got["text"]
        session = await client.http.get(f"/api/v1/machines/{orders}/sessions/42%2F1")
        said = session.json()["snapshot"]["context"]
        assert said == {"paid": [5], "by": {"id": "caller/s"}}
        await send(client, machine, "s", call(f"hub:/{orders}/42%2F1", None, "GET"))
        got = (await came(client, machine, "s", 2))["got"][1]
        assert '"paid":[5]' in got["text"]


async def test_what_is_no_call(tmp_path: Path) -> None:
    async with hub_on(sqlite(tmp_path), tmp_path) as client:
        await client.deploy(ORDERS, name="orders2")
        await client.http.post("/api/v1/projects", json={"name": "other"})
        body = {"name": "theirs", "entry": "m.ts", "files": {"m.ts": ORDERS}}
        theirs = await client.http.post("/api/v1/deployments?project=other", json=body)
        machine = await client.deploy(FETCHER, name="caller2")
        wrong = {
            "hub:/nobody/1": 404,
            f"hub:/{theirs.json()['machine']['id']}/1": 404,
            "hub:/theirs/1": 404,
            "hub:/orders2": 400,
            "hub:/orders2/a/b": 400,
            "hub://evil.example/orders2/1": 400,
            "hub:/orders2/-hooks": 404,
            "hub:/orders2/%ff": 400,
            "hub://[x/orders2/1": 400,
            "hub:/orders2/1#2": 400,
            "hub:/orders2/1\n2": 400,
            "hub:/orders2/" + "x" * 200: 404,
        }
        for number, (url, status) in enumerate(wrong.items(), 1):
            await send(client, machine, "s", call(url, '{"type":"PAID"}'))
            got = (await came(client, machine, "s", number))["got"]
            assert got[-1]["status"] == status, url
        for event, status in (
            ("nonsense", 422),
            ('{"type":"BAD"}', 422),
            ('{"type":"xstate.done"}', 422),
        ):
            number += 1
            await send(client, machine, "s", call("hub:/orders2/1", event))
            assert (await came(client, machine, "s", number))["got"][-1]["status"] == status
        await send(client, machine, "s", call("hub:/orders2/1", None, "DELETE"))
        assert (await came(client, machine, "s", number + 1))["got"][-1]["status"] == 405


async def test_a_circle_ends(tmp_path: Path) -> None:
    """Two sessions that call each other because the other called: 508 after a while."""
    async with hub_on(sqlite(tmp_path), tmp_path) as client:
        machine = await client.deploy(PING, name="ping", egress={"per_second": 1000})
        one, two = f"hub:/{machine}/one", f"hub:/{machine}/two"
        await client.http.post(f"/{machine}/one", json={"type": "PING", "url": two, "back": one})

        async def is_over() -> bool:
            got = [*(await context(client, machine, "one"))["got"]]
            got += (await context(client, machine, "two"))["got"]
            return 508 in got

        await until(is_over)
        found = [*await effects(client, machine, "one"), *await effects(client, machine, "two")]
        assert len(found) == 17
        assert [each["status"] for each in found].count(508) == 1


async def test_a_call_is_applied_once(tmp_path: Path) -> None:
    """The caller's hub ends before it knows: the call is made again, and counts for nothing."""
    async with hub_on(sqlite(tmp_path), tmp_path) as client:
        orders = await client.deploy(ORDERS, name="orders3")
        machine = await client.deploy(FETCHER, name="caller3")
        broker = client.hub.broker
        sends = client.hub.sessions.answer

        async def lost(*_: Any, **__: Any) -> None:
            raise AssertionError("the answer is lost with its hub")

        client.hub.sessions.answer = lost  # type: ignore[method-assign]
        await send(client, machine, "s", call("hub:/orders3/1", '{"type":"PAID","cents":1}'))
        paid = f"/{orders}/1"

        async def is_paid() -> bool:
            answer = await client.http.get(paid, headers={"Accept": "application/json"})
            found: list[int] = answer.json()["snapshot"]["context"]["paid"]
            return found == [1]

        await until(is_paid)
        broker.forget_all()
        client.hub.sessions.answer = sends  # type: ignore[method-assign]
        await came(client, machine, "s")
        assert await is_paid()
