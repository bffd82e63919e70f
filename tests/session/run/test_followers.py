"""Listeners that hear of each input, what XState would persist, and the places of clients: what
protocols need whose clients run the machine themselves.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from machinehub.errors import Conflict, Forbidden, NotFound
from machinehub.ids import EventId, MachineId, Seq, SessionId
from machinehub.model import Kind
from machinehub.principal import Principal, Standing
from machinehub.session.messages import Applied, Message, Snapshot, Update
from machinehub.session.port import Address, Place, Visitor
from machinehub.store.places import KEPT_PER_SESSION
from tests.durable import hub_on
from tests.support import COUNTER, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Client

VISITOR = Visitor(Principal(Standing.LOCAL))
LAMP = """
import { createMachine } from "xstate";
const kid = createMachine({ id: "kid", initial: "x", states: { x: {} } });
export default createMachine({
  id: "lamp", initial: "off", on: { "presence.joined": {}, "presence.left": {} },
  states: { off: { on: { PRESS: "on" } }, on: { invoke: { src: kid, id: "k" }, after: { 50: "off" } } },
});
"""


class Follower:
    def __init__(self) -> None:
        self.heard: list[Message] = []

    def receive(self, message: Message) -> None:
        self.heard.append(message)

    def applied(self) -> list[Applied]:
        return [each for each in self.heard if isinstance(each, Applied)]


def address_of(machine: str, session: str = "s") -> Address:
    return Address(MachineId(machine), SessionId(session))


async def test_inputs_are_heard_in_order_before_what_they_changed(client: Client) -> None:
    machine = await client.deploy(LAMP, name="followed")
    address, port = address_of(machine), client.hub.port
    follower, other = Follower(), Follower()
    subscription = await port.subscribe(address, follower, VISITOR, inputs=True)
    await port.subscribe(address, other, VISITOR)
    subscription.send(b'{"type":"PRESS"}', EventId("e1"))
    subscription.send(b'{"type":"NOTHING"}', EventId("e2"))

    def timer() -> list[Applied]:
        return [each for each in follower.applied() if each.entry.kind is Kind.TIMER]

    await until(timer)
    entries = [each.entry for each in follower.applied()]
    begins = next(each.seq for each in follower.heard if isinstance(each, Snapshot))
    assert [each.seq for each in entries] == [*range(begins + 1, begins + 1 + len(entries))]
    assert timer()[0].entry.cause == "xstate.after.50.lamp.on"
    assert {"e1", "e2"} < {each.event_id for each in entries}
    assert {Kind.PRESENCE, Kind.EVENT, Kind.TIMER} == {each.kind for each in entries}
    said = await port.journal_of(address, after=(begins, 2**31 - 1), limit=100)
    assert [each for each in said if each.error is None] == entries
    for at, message in enumerate(follower.heard):
        if isinstance(message, Update):
            before = follower.heard[at - 1]
            assert isinstance(before, Applied)
            assert before.entry.seq == message.seq
    assert other.applied() == []


async def test_a_session_with_views_is_not_followed(client: Client) -> None:
    source = COUNTER + "\nexport const view = ({ snapshot }) => snapshot.context;\n"
    machine = await client.deploy(source, name="not-followed")
    with pytest.raises(Forbidden):
        await client.hub.port.subscribe(address_of(machine), Follower(), VISITOR, inputs=True)


async def test_what_xstate_would_persist(client: Client) -> None:
    """It is asked of a copy: the session goes on as if nobody had, and replays to the same."""
    machine = await client.deploy(LAMP, name="persisted")
    address, port = address_of(machine), client.hub.port
    with pytest.raises(NotFound):
        await port.persisted(address)
    await port.send(address, b'{"type":"PRESS"}', VISITOR)
    seq, state = await port.persisted(address)
    said: dict[str, Any] = json.loads(state)
    assert said["value"] in ("on", "off")
    if said["value"] == "on":
        assert said["children"]["k"]["snapshot"]["value"] == "x"
    assert seq >= 2
    replayed = (await client.http.post(f"/api/v1/machines/{machine}/sessions/s/replay")).json()
    assert replayed["verified"] is True


async def test_a_session_that_nothing_can_restore_is_not_persisted(client: Client) -> None:
    source = """
import { createMachine } from "xstate";
export default createMachine({ context: ({ spawn }) => ({ kid: spawn(createMachine({})) }) });
"""
    machine = await client.deploy(source, name="not-persisted")
    address, port = address_of(machine), client.hub.port
    await port.read(address, VISITOR)
    with pytest.raises(Conflict, match="not_persistable"):
        await port.persisted(address)


async def test_places_are_kept_with_their_session(database_url: str, tmp_path: Path) -> None:
    def place(client: str, seq: int, session: str = "s") -> Place:
        return Place(address_of(machine, session), client.encode(), Seq(seq))

    async with hub_on(database_url, tmp_path) as hub:
        machine = await hub.deploy(COUNTER)
        address, port = address_of(machine), hub.hub.port
        assert await port.place_of(address, b"a") is None
        await port.keep_places([place("a", 1)])  # there is no session yet
        assert await port.place_of(address, b"a") is None
        for session in ("s", "t"):
            await port.read(address_of(machine, session), VISITOR)
        await port.keep_places([place("a", 3), place("b", 2, "t"), place("b", 1)])
        await port.keep_places([place("a", 2), place("b", 4)])  # they only advance
    async with hub_on(database_url, tmp_path) as hub:
        port = hub.hub.port
        assert await port.place_of(address, b"a") == 3
        assert await port.place_of(address, b"b") == 4
        assert await port.place_of(address_of(machine, "t"), b"b") == 2
        assert await port.place_of(address_of(machine, "t"), b"a") is None
        await port.delete(address)
        await port.read(address, VISITOR)
        assert await port.place_of(address, b"a") is None


async def test_the_places_of_so_many_clients_are_kept(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="places")
    address, port = address_of(machine), client.hub.port
    await port.read(address, VISITOR)
    await port.keep_places([Place(address, b"old", Seq(1))])
    clock = client.hub.sessions._clock
    then = clock.now_ms()
    await until(lambda: clock.now_ms() > then)
    many = [Place(address, b"%d" % number, Seq(1)) for number in range(KEPT_PER_SESSION)]
    await port.keep_places(many)
    assert await port.place_of(address, b"0") == 1
    assert await port.place_of(address, b"old") is None
