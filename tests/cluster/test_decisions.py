"""What nodes decide without asking anybody: where sessions go, who seems to be dead, what of a link
is believed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from machinehub.cluster import wire
from machinehub.cluster.links import Answering, Links
from machinehub.cluster.placing import place
from machinehub.cluster.suspicion import ABSENT_S, SILENT_S, UNCONNECTED_S, Suspicion
from machinehub.ids import EventId, MachineId, NodeId, SessionId
from machinehub.store.nodes import NodeRecord

pytestmark = pytest.mark.core

MACHINE = MachineId("m")
A, B, C = NodeId("a" * 12), NodeId("b" * 12), NodeId("c" * 12)


# --- placing --------------------------------------------------------------------------------------


def places(nodes: dict[NodeId, int], count: int = 3000) -> list[NodeId | None]:
    return [place(nodes, MACHINE, SessionId(str(number))) for number in range(count)]


def test_sessions_are_spread_by_capacity() -> None:
    found = Counter(places({A: 1, B: 1, C: 2}))
    assert found[C] / 3000 == pytest.approx(0.5, abs=0.05)
    assert found[A] / 3000 == pytest.approx(0.25, abs=0.05)


def test_only_sessions_of_a_node_that_goes_are_placed_anew() -> None:
    before, after = places({A: 1, B: 1, C: 1}), places({A: 1, B: 1})
    assert all(now == then for then, now in zip(before, after, strict=True) if then != C)
    assert {now for then, now in zip(before, after, strict=True) if then == C} == {A, B}


def test_there_may_be_no_node() -> None:
    assert place({}, MACHINE, SessionId("s")) is None
    assert place({A: 0}, MACHINE, SessionId("\ud800")) == A


# --- suspicion ------------------------------------------------------------------------------------


def node(ident: NodeId, beats: int, lock: int = 1) -> NodeRecord:
    return NodeRecord(
        id=ident, name="", lock=lock, capacity=1, software="", started_at_ms=0, beats=beats
    )


def look_on(
    suspicion: Suspicion, until_s: float, *, connected: set[int], beats: int = 5, from_s: float = 0
) -> float | None:
    """When a node is suspected that gives no sign of life from now on."""
    now_s = from_s
    while now_s <= until_s:
        if suspicion.look([node(B, beats)], connected, now_s):
            return now_s
        now_s += 0.25
    return None


def test_a_node_whose_connection_ended_is_suspected_soon() -> None:
    at_s = look_on(Suspicion(), 10, connected=set())
    assert at_s is not None
    assert UNCONNECTED_S <= at_s < UNCONNECTED_S + 0.5


def test_a_silent_node_is_suspected_later() -> None:
    at_s = look_on(Suspicion(), 10, connected={1})
    assert at_s is not None
    assert SILENT_S <= at_s < SILENT_S + 0.5


def test_a_node_that_beats_is_never_suspected() -> None:
    suspicion = Suspicion()
    assert not any(suspicion.look([node(B, beat)], set(), beat / 2) for beat in range(100))


def test_a_watcher_that_was_away_begins_anew() -> None:
    suspicion = Suspicion()
    assert look_on(suspicion, 0.75, connected=set()) is None
    later_s = 0.75 + ABSENT_S + 0.1
    at_s = look_on(suspicion, 10, connected=set(), from_s=later_s)
    assert at_s is not None
    assert at_s >= later_s + UNCONNECTED_S


# --- links ----------------------------------------------------------------------------------------


class Wires:
    """A bus between nodes of one test, which loses, repeats and reorders as it is told."""

    packet_bytes_max = 200

    def __init__(self, all_: dict[NodeId, Links]) -> None:
        self._all = all_
        self.spoil: Any = lambda packets: packets
        self._sent: list[tuple[NodeId, bytes]] = []

    async def start(self, node: NodeId, receive: Any) -> None: ...
    async def stop(self) -> None: ...

    is_connected = True

    def send(self, node: NodeId, packet: bytes) -> None:
        if not self._sent:
            asyncio.get_running_loop().call_soon(self._deliver)
        self._sent.append((node, packet))

    def spread(self, packet: bytes) -> None: ...

    def _deliver(self) -> None:
        sent, self._sent = self.spoil(self._sent), []
        for to, packet in sent:
            self._all[to].receive(packet)


class Peer:
    """Both sides of a node's links, which note what they hear."""

    def __init__(self, me: NodeId, wires: Wires, all_: dict[NodeId, Links]) -> None:
        self.events: list[int] = []
        self.answers: list[int] = []
        self.losses = self.departures = 0
        self.last: Answering | None = None
        names = iter(f"{me[0]}{number:011}" for number in range(10_000))
        self.links = Links(wires, me, new_name=lambda: next(names), is_alive=lambda _: True)
        self.links.report_to(self, self)
        all_[me] = self.links

    def told(self, node: NodeId, frame: wire.ToEdge) -> None:
        assert isinstance(frame, wire.Moved)
        self.answers += frame.numbers

    def lost(self, node: NodeId) -> None:
        self.losses += 1

    def asked(self, link: Answering, frame: wire.ToOwner) -> None:
        assert isinstance(frame, wire.Event)
        self.last = link
        self.events.append(frame.number)
        link.post(wire.Moved([frame.number]))

    def left(self, link: Answering) -> None:
        self.departures += 1


def pair() -> tuple[Wires, Peer, Peer]:
    links: dict[NodeId, Links] = {}
    wires = Wires(links)
    return wires, Peer(A, wires, links), Peer(B, wires, links)


def event(number: int, size: int = 10) -> wire.Event:
    return wire.Event(number, EventId("e"), b"x" * size)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_frames_come_in_order_also_in_parts() -> None:
    _, one, two = pair()
    for number in range(50):
        one.links.to(B).post(event(number, size=number * 20))
    await settle()
    assert two.events == one.answers == list(range(50))
    assert one.losses == two.departures == 0


async def test_copies_of_packets_are_passed_over() -> None:
    wires, one, two = pair()
    wires.spoil = lambda packets: [packet for packet in packets for _ in range(2)]
    for number in range(10):
        one.links.to(B).post(event(number))
        await settle()
    assert two.events == one.answers == list(range(10))


@pytest.mark.parametrize("seed", range(60))
async def test_a_spoiled_link_breaks_and_what_came_is_a_beginning(seed: int) -> None:
    """Whatever is lost, repeated or reordered: each link's frames are a beginning of what was
    posted on it, and who posted on one that broke hears of that.
    """
    chance = random.Random(seed)
    wires, one, two = pair()

    def spoil(packets: list[Any]) -> list[Any]:
        packets = [packet for packet in packets if chance.random() > 0.05]
        packets += [packet for packet in packets if chance.random() < 0.05]
        if chance.random() < 0.05:
            chance.shuffle(packets)
        return packets

    wires.spoil = spoil
    sent: dict[bytes, list[int]] = {}
    heard: dict[bytes, list[int]] = {}

    def asked(link: Answering, frame: Any) -> None:
        heard.setdefault(link.name, []).append(frame.number)
        link.post(wire.Moved([frame.number]))

    two.asked = asked  # type: ignore[method-assign]
    for number in range(60):
        link = one.links.to(B)
        sent.setdefault(link.name, []).append(number)
        link.post(event(number, size=chance.randrange(500)))
        if chance.random() < 0.5:
            await settle()
        if chance.random() < 0.2:
            link.beat()
            await settle()
    wires.spoil = lambda packets: packets
    for _ in range(3):
        one.links.to(B).beat()
        two.links.beat(asyncio.get_running_loop().time())
        await settle()
    for name, numbers in heard.items():
        assert numbers == sent[name][: len(numbers)]
    unheard = [name for name in sent if heard.get(name, []) != sent[name]]
    assert one.losses >= len([name for name in unheard if name != one.links.to(B).name])
    # The last one is whole, or was given up.
    last = one.links.to(B).name
    assert heard.get(last, []) == sent.get(last, [])


async def test_silence_breaks_a_link() -> None:
    wires, one, two = pair()
    one.links.to(B).post(event(1))
    await settle()
    wires.spoil = lambda _packets: []
    now_s = asyncio.get_running_loop().time()
    one.links.beat(now_s + 10)
    two.links.beat(now_s + 10)
    assert one.losses == 1
    assert two.departures == 1


async def test_packets_that_are_none_are_passed_over() -> None:
    _, one, two = pair()
    one.links.to(B).post(event(1))
    await settle()
    chance = random.Random(1)
    for size in range(200):
        two.links.receive(chance.randbytes(size))
        one.links.receive(b"A" + B.encode() + chance.randbytes(size))
    one.links.to(B).post(event(2))
    await settle()
    assert two.events == [1, 2]


async def test_a_node_that_is_not_alive_is_not_heard() -> None:
    _, one, two = pair()
    two.links._is_alive = lambda node: node != A
    one.links.to(B).post(event(1))
    await settle()
    assert two.events == []
