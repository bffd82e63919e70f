"""Frames as the native protocol spells them."""

from __future__ import annotations

import msgspec
import pytest

from machinehub.edge.websocket_frames import text_frame
from machinehub.ids import EventId, Seq
from machinehub.model import Fault
from machinehub.protocols.native import frames
from machinehub.session.decide.identity import Identity
from machinehub.session.decide.members import Members
from machinehub.session.messages import Emitted, Settled, Snapshot, Update

pytestmark = pytest.mark.core


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_frames_are_spelled_as_websockets_spells_them(size: int) -> None:
    from websockets.frames import Frame, Opcode

    json = b"x" * size
    assert text_frame(json) == Frame(Opcode.TEXT, json).serialize(mask=False)


def test_every_frame_is_json() -> None:
    members = Members()
    members.arrive(Identity('i"d'), "then")
    made = [
        frames.to_json(Snapshot(Seq(1), 2, b"{}", '"', 3)),
        frames.to_json(Snapshot(Seq(1), 2, b"{}")),
        frames.to_json(Update(Seq(1), b"{}")),
        frames.settled_json(Settled(EventId('i"d'), Seq(1), True), with_cost=True),
        frames.settled_json(
            Settled(EventId("id"), Seq(1), False, Fault("code", 'de"tail')), with_cost=True
        ),
        frames.to_json(Emitted(Seq(1), b"{}")),
        frames.to_json(members.listing()),
        frames.error_json("code", "detail"),
        frames.PONG[2:],
    ]
    types = [msgspec.json.decode(frame)["type"] for frame in made]
    assert types == [
        "snapshot",
        "snapshot",
        "update",
        "ack",
        "ack",
        "emitted",
        "presence",
        "error",
        "pong",
    ]
