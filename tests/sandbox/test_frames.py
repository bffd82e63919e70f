"""Messages between the hub and its workers, as bytes."""

from __future__ import annotations

import pytest

from sandbox.protocol.frames import encode, to_worker_reader
from sandbox.protocol.ids import Slot, Ticket
from sandbox.protocol.messages import Open

pytestmark = pytest.mark.core


def test_large_batches_go_out_in_several_frames() -> None:
    messages = [
        Open(Slot(number), Ticket(0), "d", 1, 1, 1, bytes(3 * 1024 * 1024)) for number in range(6)
    ]
    wire = encode(messages)
    reader = to_worker_reader()
    assert [message for batch in reader.feed(wire) for message in batch] == messages
