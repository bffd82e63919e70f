"""What requests to the world cost: CPU of the hub for one, sessions that wait, how many at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import httpx

from bench.hub import BenchHub
from bench.processes import cpu_s, private_kb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROUNDS: Final = 4
SESSIONS: Final = 500
CLIENTS: Final = 50
WAITING: Final = 1_000
AT_ONCE: Final = 200
MACHINE: Final = """
import { assign, fromPromise, setup } from "xstate";
const call = fromPromise(async ({ input }) => {
  const answer = await fetch(input.url, { method: "POST", body: '{"cents":100}', headers: { "Content-Type": "application/json" } });
  return (await answer.json()).id;
});
export default setup({ actors: { call } }).createMachine({
  context: { count: 0 },
  initial: "idle",
  states: {
    idle: { on: { INC: { actions: assign({ count: ({ context }) => context.count + 1 }) }, GO: "busy" } },
    busy: { invoke: { src: "call", input: ({ event }) => event, onDone: { target: "idle", actions: assign({ count: ({ context }) => context.count + 1 }) } } },
  },
});
"""  # noqa: E501 - a machine's source
ANSWER: Final = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"id":"ch_1"}'
)


class Service:
    """A payment service in this process, whose CPU nobody counts."""

    def __init__(self) -> None:
        self.url = ""
        self.under_way = 0
        self.most = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
                await reader.readexactly(int(length))
                self.under_way += 1
                self.most = max(self.most, self.under_way)
                await self.answers.wait()
                self.under_way -= 1
                writer.write(ANSWER)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Service]:
    service = Service()
    server = await asyncio.start_server(service.talk, "127.0.0.1", 0)
    service.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/charges"
    try:
        yield service
    finally:
        server.close()


def effects(data: str) -> list[tuple[str, str, str]]:
    return asyncio.run(_effects(data))


async def _effects(data: str) -> list[tuple[str, str, str]]:
    async with serving() as service, httpx.AsyncClient(timeout=60) as http:
        with BenchHub(data, MACHINEHUB_EGRESS_NETWORKS="127.0.0.0/8") as hub:
            body: dict[str, Any] = {"name": "shop", "entry": "m.ts", "files": {"m.ts": MACHINE}}
            body["egress"] = {"allow": ["127.0.0.1"], "per_second": 1000, "in_flight": AT_ONCE}
            answer = await http.post(f"{hub.url}/api/v1/deployments", json=body)
            machine = f"{hub.url}/{answer.raise_for_status().json()['machine']['id']}"
            await _round(http, hub, machine, "INC", service.url)  # they begin
            plain: list[float] = []
            asking: list[float] = []
            for number in range(ROUNDS):
                order = [("INC", plain), ("GO", asking)]
                for type_, found in order if number % 2 else reversed(order):
                    found.append(await _round(http, hub, machine, type_, service.url))
            event_us, request_us = median(plain), median(asking)
            waits = await _waiting(http, hub, machine, service)
    return [
        (
            f"an event of {SESSIONS} sessions, by POST: CPU of all processes",
            f"{event_us:.0f} us",
            "",
        ),
        ("an event whose turn asks, the request and its answer", f"{request_us:.0f} us", ""),
        ("a request alone", f"{(request_us - event_us) / 1000:.2f} ms", "1.5 ms"),
        *waits,
    ]


async def _round(
    http: httpx.AsyncClient, hub: BenchHub, machine: str, type_: str, url: str
) -> float:
    """CPU for an event to each session, in us, until what they asked is answered."""
    before = sum(cpu_s(hub.pid).values())
    event = {"type": type_, "url": url}
    for start in range(0, SESSIONS, CLIENTS):
        names = range(start, start + CLIENTS)
        await asyncio.gather(*(http.post(f"{machine}/s{name}", json=event) for name in names))
    while hub.metric("machinehub_effects_waiting"):
        await asyncio.sleep(0.5)
    return (sum(cpu_s(hub.pid).values()) - before) * 1e6 / SESSIONS


async def _waiting(
    http: httpx.AsyncClient, hub: BenchHub, machine: str, service: Service
) -> list[tuple[str, str, str]]:
    """A thousand sessions wait for a service that does not answer, and sleep meanwhile."""
    hub.settle()
    service.most = 0
    service.answers.clear()
    before_kb = private_kb(hub.pid)
    event = {"type": "GO", "url": service.url}
    for start in range(0, WAITING, 50):
        names = [f"{machine}/w{number}" for number in range(start, start + 50)]
        await asyncio.gather(*(http.post(name, json=event) for name in names))
    hub.settle()
    live = hub.metric("machinehub_live_sessions")
    kept_kb = private_kb(hub.pid) - before_kb
    at_once = service.most
    service.answers.set()
    began_s = time.monotonic()
    while hub.metric("machinehub_effects_waiting"):
        await asyncio.sleep(0.2)
    return [
        (f"{WAITING} sessions that wait: on workers", f"{live:.0f}", "0"),
        (
            "memory of all processes for them, against before",
            f"{kept_kb / WAITING:.1f} KB each",
            "",
        ),
        ("requests under way at once", f"{at_once}", f"{AT_ONCE}"),
        ("until all have their answers", f"{time.monotonic() - began_s:.1f} s", ""),
    ]
