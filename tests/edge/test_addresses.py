"""Per-machine URLs: what they name."""

from __future__ import annotations

import pytest

from machinehub.edge.addresses import MachineUrl, read_url
from machinehub.errors import BadRequest, NotFound
from machinehub.ids import MachineId, SessionId

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("path", "address"),
    [
        (b"/Wu5gAj", MachineUrl(MachineId("Wu5gAj"))),
        (b"/Wu5gAj@3", MachineUrl(MachineId("Wu5gAj"), 3)),
        (b"/Wu5gAj/s", MachineUrl(MachineId("Wu5gAj"), None, SessionId("s"))),
        (b"/Wu5gAj@3/a%2Fb", MachineUrl(MachineId("Wu5gAj"), 3, SessionId("a/b"))),
        (b"/Wu5gAj/..", MachineUrl(MachineId("Wu5gAj"), None, SessionId(".."))),
        (
            b"/Wu5gAj/%F0%9F%98%80/wait",
            MachineUrl(MachineId("Wu5gAj"), None, SessionId("😀"), "wait"),
        ),
        (b"/Wu5gAj/" + b"x" * 128, MachineUrl(MachineId("Wu5gAj"), None, SessionId("x" * 128))),
        (b"/Wu5gAj/%00", MachineUrl(MachineId("Wu5gAj"), None, SessionId("\0"))),
    ],
)
def test_addresses(path: bytes, address: MachineUrl) -> None:
    assert read_url(path, session_chars_max=128) == address


@pytest.mark.parametrize(
    "path",
    [b"/short", b"/Wu5gAj@x", b"/Wu5gA-j", b"/a/b/c/d", b"/Wu5gAj/s/wait/more", b"/", b"/../etc"],
)
def test_what_is_no_machine_is_not_found(path: bytes) -> None:
    with pytest.raises(NotFound):
        read_url(path, session_chars_max=128)


@pytest.mark.parametrize(
    "path", [b"/Wu5gAj/", b"/Wu5gAj/" + b"x" * 129, b"/Wu5gAj/%ff", b"/Wu5gAj/%ed%a0%80"]
)
def test_session_ids_that_cannot_be(path: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        read_url(path, session_chars_max=128)
    assert refused.value.code == "invalid_session_id"
