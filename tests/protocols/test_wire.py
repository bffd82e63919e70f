"""The wire: frames as both sides read them.

`python -m tests.protocols.test_wire` writes tests/protocols/frames.json, which the client's own tests read too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from machinehub.ids import EventId, MemberId, Seq
from machinehub.model import Fault
from machinehub.protocols.native import frames
from machinehub.protocols.native.websocket import ClientFrame
from machinehub.session.decide.identity import Identity
from machinehub.session.decide.members import Members
from machinehub.session.messages import Emitted, Presence, Settled, Snapshot, Update

pytestmark = pytest.mark.core

FILE = Path(__file__).parent / "frames.json"
SENT = {
    "event": {"type": "a b", "nested": {"é": [1, None, "\u2028"]}},
    "metadata": {"name": "Ann", "at": [1, 2]},
}


def ack(settled: Settled) -> bytes:
    return frames.settled_json(settled, with_cost=False)


def made() -> dict[str, Any]:
    snapshot = json.dumps(
        {"value": {"a": "b"}, "context": {"text": "é\0😀"}, "status": "active", "tags": ["busy"]}
    ).encode()
    frame = {
        "snapshot": frames.to_json(Snapshot(Seq(41), 3, snapshot, "conn", 2)),
        "update": frames.to_json(
            Update(
                Seq(42), b'{"value":"z","context":{},"status":"done","tags":[],"output":{"n":1}}'
            )
        ),
        "ack": ack(Settled(EventId("c1-17"), Seq(42), True)),
        "rejected": ack(
            Settled(EventId("c1-18"), Seq(42), False, Fault("cpu_exceeded", 'too "much"'))
        ),
        "emitted": frames.to_json(Emitted(Seq(42), b'{"type":"toast","text":"hi"}')),
        "error": frames.error_json("bad_frame", "why"),
        "pong": frames.PONG[2:],
    }
    return {
        "frames": {name: json.loads(text) for name, text in frame.items()},
        "presence": list(crowd()),
        "sent": SENT,
    }


def crowd() -> Any:
    """A crowd's life: each step with the members that whoever followed it knows."""
    members = Members()
    known: list[str] = []

    def step(presence: Presence | None) -> dict[str, Any]:
        assert presence is not None
        known[:] = [
            f"{member['id']}:{json.dumps(member.get('metadata'), separators=(',', ':'))}"
            for member in json.loads(frames.members_json(members.listing()))["members"]
        ]
        return {
            "frame": json.loads(frames.to_json(presence)),
            "members": list(known),
            "count": len(members),
        }

    members.arrive(Identity("ann"), "t")
    yield step(members.listing())
    members.news()
    for number in range(40):
        members.arrive(Identity(f"guest{number}"), "t")
    yield step(members.news())
    members.describe(MemberId("guest7"), b'{"x":1}')
    members.depart(Identity("guest0"))
    yield step(members.news())
    for number in range(1, 40):
        members.depart(Identity(f"guest{number}"))
    yield step(members.news())


def test_the_frames_are_those_on_file() -> None:
    assert json.loads(FILE.read_text()) == made(), (
        "python -m tests.protocols.test_wire writes them anew"
    )


def test_what_a_client_sends_is_read() -> None:
    event = {"type": "event", "id": "x", "event": SENT["event"]}
    read = msgspec.json.decode(json.dumps(event), type=ClientFrame)
    assert (read.type, read.id, json.loads(bytes(read.event))) == ("event", "x", SENT["event"])
    presence = {"type": "presence", "metadata": SENT["metadata"]}
    read = msgspec.json.decode(json.dumps(presence), type=ClientFrame)
    assert (read.type, json.loads(bytes(read.metadata))) == ("presence", SENT["metadata"])


if __name__ == "__main__":
    FILE.write_text(json.dumps(made(), indent=1, ensure_ascii=True) + "\n")
