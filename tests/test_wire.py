"""The wire: frames as both sides read them.

`python -m tests.test_wire` writes tests/wire/frames.json, which the client's own tests read too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from machinehub.router.websocket import ClientFrame
from machinehub.session import frames
from machinehub.session.members import Identity, Members

pytestmark = pytest.mark.core

FILE = Path(__file__).parent / "wire" / "frames.json"
SENT = {
    "event": {"type": "a b", "nested": {"é": [1, None, "\u2028"]}},
    "metadata": {"name": "Ann", "at": [1, 2]},
}


def made() -> dict[str, Any]:
    snapshot = json.dumps(
        {"value": {"a": "b"}, "context": {"text": "é\0😀"}, "status": "active", "tags": ["busy"]}
    ).encode()
    frame = {
        "snapshot": frames.snapshot_frame(
            seq=41, version=3, snapshot=snapshot, connection_id="conn", count=2
        ),
        "update": frames.update_frame(
            42, b'{"value":"z","context":{},"status":"done","tags":[],"output":{"n":1}}'
        ),
        "ack": frames.ack_frame("c1-17", 42, None),
        "rejected": frames.ack_frame("c1-18", 42, ("cpu_exceeded", 'too "much"')),
        "emitted": frames.emitted_frame(42, b'{"type":"toast","text":"hi"}'),
        "error": frames.error_frame("bad_frame", "why"),
        "pong": frames.PONG,
    }
    return {
        "frames": {name: json.loads(frame.json) for name, frame in frame.items()},
        "presence": list(crowd()),
        "sent": SENT,
    }


def crowd() -> Any:
    """A crowd's life: each step with the members that whoever followed it knows."""
    members = Members()
    known: list[str] = []

    def step(frame: frames.Frame | None) -> dict[str, Any]:
        assert frame is not None
        known[:] = [
            f"{member['id']}:{json.dumps(member.get('metadata'), separators=(',', ':'))}"
            for member in json.loads(members.listing())["members"]
        ]
        return {"frame": json.loads(frame.json), "members": list(known), "count": len(members)}

    members.arrive(Identity("ann"), "t")
    yield step(members.whole())
    members.news()
    for number in range(40):
        members.arrive(Identity(f"guest{number}"), "t")
    yield step(members.news())
    members.describe("guest7", b'{"x":1}')
    members.depart(Identity("guest0"))
    yield step(members.news())
    for number in range(1, 40):
        members.depart(Identity(f"guest{number}"))
    yield step(members.news())


def test_the_frames_are_those_on_file() -> None:
    assert json.loads(FILE.read_text()) == made(), "python -m tests.test_wire writes them anew"


def test_what_a_client_sends_is_read() -> None:
    for frame in (
        {"type": "event", "id": "x", "event": SENT["event"]},
        {"type": "presence", "metadata": SENT["metadata"]},
    ):
        read = msgspec.json.decode(json.dumps(frame), type=ClientFrame)
        assert json.loads(bytes(read.event or read.metadata)) in SENT.values()


if __name__ == "__main__":
    FILE.write_text(json.dumps(made(), indent=1, ensure_ascii=True) + "\n")
