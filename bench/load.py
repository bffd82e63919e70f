"""The load generator: a process of its own, so that its CPU is not the hub's.

Speaks WebSocket by hand over asyncio (frames are masked with zeros), so that it is cheap beside
what it measures. Bounded in count and time; prints one JSON line.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import uvloop

from bench.processes import cpu_s, private_kb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def long_frame(payload: bytes) -> bytes:
    return bytes((0x81, 0x80 | 126)) + len(payload).to_bytes(2, "big") + b"\0\0\0\0" + payload


def frame(payload: bytes) -> bytes:
    assert len(payload) < 126
    return bytes((0x81, 0x80 | len(payload))) + b"\0\0\0\0" + payload


@dataclass
class Tally:
    acks: int = 0
    updates: int = 0
    rejected: int = 0
    latencies_s: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One connection. `again` makes it send the next event as soon as the last one is
    acknowledged.
    """

    def __init__(self, path: str, tally: Tally, event: bytes) -> None:
        self.path = path
        self.tally = tally
        self._event = event
        self.again = False
        self.snapshot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answered = asyncio.Event()
        self._buffer = b""
        self._shaken = False
        self._sent = 0
        self._sent_at = 0.0
        self._name = base64.b32encode(os.urandom(5)).decode()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            (
                f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: "
                "websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: "
                f"13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
            ).encode()
        )

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        at = 0
        if not self._shaken:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = data
                return
            self._shaken = True
            at = end + 4
        while len(data) - at >= 2:
            size, head = data[at + 1], 2
            if size == 126:
                if len(data) - at < 4:
                    break
                size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
            elif size == 127:
                if len(data) - at < 10:
                    break
                size, head = int.from_bytes(data[at + 2 : at + 10], "big"), 10
            if len(data) - at < head + size:
                break
            payload = data[at + head : at + head + size]
            if data[at] == 0x89:
                self._pong(payload)
            else:
                self._receive(payload)
            at += head + size
        self._buffer = data[at:]

    def _pong(self, payload: bytes) -> None:
        self.transport.write(bytes((0x8A, 0x80 | len(payload))) + b"\0\0\0\0" + payload)

    def _receive(self, payload: bytes) -> None:
        if payload.startswith(b'{"type":"update"'):
            self.tally.updates += 1
        elif payload.startswith(b'{"type":"ack"'):
            self.tally.acks += 1
            self.tally.rejected += b"rejected" in payload
            self.tally.latencies_s.append(time.perf_counter() - self._sent_at)
            self.answered.set()
            if self.again:
                self.send()
        elif payload.startswith(b'{"type":"snapshot"') and not self.snapshot.done():
            self.snapshot.set_result(None)

    def send(self) -> None:
        self._sent += 1
        self._sent_at = time.perf_counter()
        self.transport.write(
            frame(
                b'{"type":"event","id":"%s-%d","event":{"type":"%s"}}'
                % (self._name.encode(), self._sent, self._event)
            )
        )


async def connect(port: int, path: str, tally: Tally, *, event: bytes = b"increment") -> Client:
    _, client = await asyncio.get_running_loop().create_connection(
        lambda: Client(path, tally, event), "127.0.0.1", port
    )
    await asyncio.wait_for(client.snapshot, 10)
    return client


def difference(before: dict[int, float], after: dict[int, float]) -> float:
    return sum(after.values()) - sum(before.values())


def cpu_of(hubs: Sequence[int]) -> dict[int, float]:
    return {process: seconds for hub in hubs for process, seconds in cpu_s(hub).items()}


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)] if values else 0.0


async def opening(port: int, machine: str, pid: int, *, sessions: int) -> dict[str, Any]:
    """New sessions, one after the other: time to the first snapshot, and the hub's CPU."""
    tally, times = Tally(), []
    before = cpu_s(pid)
    for number in range(sessions):
        started = time.perf_counter()
        client = await connect(port, f"/{machine}/open-{os.getpid()}-{number}", tally)
        times.append(time.perf_counter() - started)
        client.transport.close()
    await asyncio.sleep(0.2)
    return {
        "p50_ms": percentile(times, 0.5) * 1000,
        "cpu_ms": difference(before, cpu_s(pid)) / sessions * 1000,
    }


async def let_send(
    senders: Sequence[Client], hubs: Sequence[int], seconds: float
) -> tuple[float, dict[int, float], dict[int, float]]:
    """They send for so long, each as soon as its last event was answered. Returns how long that
    took, and the CPU seconds of the hubs' processes before and after.
    """
    before, started = cpu_of(hubs), time.perf_counter()
    for sender in senders:
        sender.again = True
        sender.send()
    await asyncio.sleep(seconds)
    elapsed, after = time.perf_counter() - started, cpu_of(hubs)
    for sender in senders:
        sender.again = False
    return elapsed, before, after


async def events(
    port: int,
    machine: str,
    pid: int,
    *,
    sessions: int,
    clients: int,
    seconds: float,
    tokens: Sequence[str] = (),
    names: Sequence[str] = (),
    ports: Sequence[int] = (),
    pids: Sequence[int] = (),
) -> dict[str, Any]:
    """Every session has `clients` connections, of which one sends as fast as it is acknowledged.
    They show `tokens`, in turns. `names` are those of the sessions, `ports` and `pids` of further
    hubs: a session's connections are made to all of them, in turns.
    """
    listening, hubs = [port, *ports], [pid, *pids]
    tally = Tally()
    senders = []
    everybody = []
    for number in range(sessions):
        group = [
            await connect(
                listening[each % len(listening)],
                f"/{machine}/{names[number] if names else f'events-{os.getpid()}-{number}'}"
                + (f"?token={tokens[(number + each) % len(tokens)]}" if tokens else ""),
                tally,
            )
            for each in range(clients)
        ]
        senders.append(group[0])
        everybody += group
    await asyncio.sleep(0.5)
    tally.updates = 0
    elapsed, before, after = await let_send(senders, hubs, seconds)
    cpu = difference(before, after)
    hub_cpu = sum(after[each] - before[each] for each in hubs)
    acks, updates = tally.acks, tally.updates
    for client in everybody:
        client.transport.close()
    return {
        "events_per_cpu_s": acks / cpu,
        "deliveries_per_cpu_s": updates / cpu,
        "events_per_s": acks / elapsed,
        "hub_us": hub_cpu / acks * 1e6,
        "workers_us": (cpu - hub_cpu) / acks * 1e6,
        "rejected": tally.rejected,
        "p50_ms": percentile(tally.latencies_s, 0.5) * 1000,
        "p99_ms": percentile(tally.latencies_s, 0.99) * 1000,
    }


async def memory(port: int, machine: str, pid: int, *, sessions: int) -> dict[str, Any]:
    """Private memory of the whole tree for live sessions that took three events each."""
    tally = Tally()
    before = private_kb(pid)
    for number in range(sessions):
        client = await connect(port, f"/{machine}/memory-{os.getpid()}-{number}", tally)
        for _ in range(3):
            client.answered.clear()
            client.send()
            await asyncio.wait_for(client.answered.wait(), 10)
        client.transport.close()
    await asyncio.sleep(0.5)
    return {"kb_per_session": (private_kb(pid) - before) / sessions}


async def neighbour(
    port: int, machine: str, _pid: int, *, hostile: list[str], seconds: float, pause_ms: float
) -> dict[str, Any]:
    """One client that sends an event every `pause_ms`, beside sessions of hostile machines whose
    clients never wait.
    """
    tally, others = Tally(), Tally()
    clients = [
        await connect(port, f"/{each}/hostile-{os.getpid()}-{number}", others, event=b"X")
        for number, each in enumerate(hostile)
    ]
    for client in clients:
        client.again = True
        client.send()
    await asyncio.sleep(1)
    polite = await connect(port, f"/{machine}/polite-{os.getpid()}", tally)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        polite.answered.clear()
        polite.send()
        await asyncio.wait_for(polite.answered.wait(), 10)
        await asyncio.sleep(pause_ms / 1000)
    for client in [polite, *clients]:
        client.transport.close()
    times = {
        f"p{share * 100:g}_ms": percentile(tally.latencies_s, share) * 1000
        for share in (0.5, 0.9, 0.99)
    }
    return times | {
        "events": tally.acks,
        "rejected": tally.rejected,
        "hostile": others.acks,
        "hostile_rejected": others.rejected,
    }


class SkyClient(Client):
    """The same by Stately's protocol, which has no acks."""

    def __init__(self, machine: str, session: str, tally: Tally) -> None:
        name = base64.b32encode(os.urandom(15)).decode()
        super().__init__(f"/party/{machine}-{session}?_pk={name}", tally, b"increment")
        init = {"apiKey": "k", "type": "actor.init", "actorId": machine, "sessionId": session}
        self._init = json.dumps({"json": init}).encode()
        self.heard: Callable[[], object] = int  # which does nothing

    def data_received(self, data: bytes) -> None:
        was_shaken = self._shaken
        super().data_received(data)
        if self._shaken and not was_shaken:
            self.transport.write(long_frame(self._init))

    def _receive(self, payload: bytes) -> None:
        if b'"type":"actor.send"' in payload:
            self.tally.updates += 1
            self.heard()
        elif b'"type":"actor.start"' in payload:
            self.snapshot.set_result(None)
        elif b'"type":"actor.error"' in payload:
            self.tally.rejected += 1

    def send(self) -> None:
        self._sent_at = time.perf_counter()
        self.transport.write(
            frame(b'{"json":{"apiKey":"k","type":"actor.send","event":{"type":"increment"}}}')
        )


async def sky(
    port: int, machine: str, pid: int, *, sessions: int, clients: int, seconds: float
) -> dict[str, Any]:
    """As `events`, by Stately's protocol: the first of each session's clients sends when the second
    has heard of its last event.
    """
    tally = Tally()
    everybody: list[SkyClient] = []
    senders: list[SkyClient] = []
    for number in range(sessions):
        group = [
            await sky_client(port, machine, f"sky-{os.getpid()}-{number}", tally)
            for _ in range(clients)
        ]
        senders.append(group[0])
        everybody += group
        group[1].heard = partial(_sent_was_heard, group[0], tally)
    await asyncio.sleep(0.5)
    tally.updates = tally.acks = 0
    elapsed, before, after = await let_send(senders, [pid], seconds)
    cpu = difference(before, after)
    events, updates = tally.acks, tally.updates
    for client in everybody:
        client.transport.close()
    return {
        "events_per_cpu_s": events / cpu,
        "deliveries_per_cpu_s": updates / cpu,
        "events_per_s": events / elapsed,
        "rejected": tally.rejected,
    }


def _sent_was_heard(sender: SkyClient, tally: Tally) -> None:
    tally.acks += 1
    if sender.again:
        sender.send()


async def sky_client(port: int, machine: str, session: str, tally: Tally) -> SkyClient:
    _, client = await asyncio.get_running_loop().create_connection(
        lambda: SkyClient(machine, session, tally), "127.0.0.1", port
    )
    await asyncio.wait_for(client.snapshot, 10)
    return client


MEASURES = {
    "opening": opening,
    "events": events,
    "memory": memory,
    "neighbour": neighbour,
    "sky": sky,
}


def main() -> None:
    name, port, machine, pid, options = sys.argv[1:6]
    result = uvloop.run(MEASURES[name](int(port), machine, int(pid), **json.loads(options)))  # type: ignore[operator]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
