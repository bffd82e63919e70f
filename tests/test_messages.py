"""What strangers send and are sent, without I/O: events, conditions, addresses, frames, rates,
members.
"""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from machinehub.edge.addresses import MachineUrl, read_url
from machinehub.errors import BadRequest, CallerError, NotFound, TooLarge
from machinehub.ids import EventId, MachineId, MemberId, Seq, SessionId
from machinehub.model import Fault
from machinehub.protocols.native import frames
from machinehub.rates import Rate
from machinehub.session.decide.conditions import matches, read_condition
from machinehub.session.decide.events import check_event, check_input
from machinehub.session.decide.members import LISTED_MAX, Identity, Members, id_of_key
from machinehub.session.port import Emitted, Presence, Settled, Snapshot, Update
from sandbox.protocol.inputs import event_input
from sandbox.protocol.nesting import depth_of

pytestmark = pytest.mark.core


# --- events


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (b"", "invalid_event"),
        (b"nonsense", "invalid_event"),
        (b"[]", "invalid_event"),
        (b"null", "invalid_event"),
        (b"{}", "invalid_event"),
        (b'{"type":1}', "invalid_event"),
        (b'{"type":""}', "invalid_event"),
        (b'{"type":null}', "invalid_event"),
        (b'{"type":"a"', "invalid_event"),
        (b'{"type":"a"}x', "invalid_event"),
        (b'{"type":"a","v":NaN}', "invalid_event"),
        (b'{"type":"a","v":Infinity}', "invalid_event"),
        (b'{"type":"xstate.stop"}', "invalid_event"),
        (b'{"type":"xstate.done.actor.x","output":1}', "invalid_event"),
        (b'{"type":"presence.joined"}', "invalid_event"),
        (b'{"type":"a","type":"xstate.init"}', "invalid_event"),
        (b'{"type":"a","v":' + b"[" * 64 + b"]" * 64 + b"}", "event_too_deep"),
        (b'{"type":"a","v":' + b"[" * 60_000, "event_too_deep"),
        (b'{"type":"a","v":"' + b"x" * 65536 + b'"}', "event_too_large"),
        (b'{"type":"a","v":"\xff"}', "invalid_utf8"),
        (b'{"type":"a","v":"\xed\xa0\x80"}', "invalid_utf8"),
        (b'{"type":"a","v":"\\ud800"}', "invalid_event"),
    ],
)
def test_bad_events_are_refused_with_a_code(event: bytes, code: str) -> None:
    with pytest.raises(CallerError) as refused:
        check_event(event, bytes_max=65536, depth_max=64)
    assert (
        refused.value.code in {code, "invalid_event"}
        if code == "invalid_utf8"
        else refused.value.code == code
    )


@pytest.mark.parametrize(
    "event",
    [
        b'{"type":"a"}',
        b' {"type":"a"} ',
        b'{"type":"\xc3\xa9"}',
        b'{"type":"a","__proto__":{"x":1},"constructor":2}',
        b'{"type":"a","v":' + b"[" * 63 + b"]" * 63 + b"}",
        b'{"type":"a","v":"' + b"[" * 200 + b'"}',
        b'{"type":"a","v":1e400}',
        b'{"type":"a",' + b",".join(b'"%d":1' % n for n in range(5000)) + b"}",
        b'{"type":"a","v":"' + b"x" * (65536 - 20) + b'"}',
    ],
)
def test_odd_events_are_let_through(event: bytes) -> None:
    check_event(event, bytes_max=65536, depth_max=64)


def test_inputs_are_any_json() -> None:
    check_input(b"[1,2]", bytes_max=100, depth_max=64)
    for bad, kind in ((b"{", BadRequest), (b"[" * 70, BadRequest), (b"1" * 101, TooLarge)):
        with pytest.raises(kind):
            check_input(bad, bytes_max=100, depth_max=64)


@pytest.mark.parametrize(
    "text",
    [
        b'"' + b'\\"' * 200_000,
        b"[" + b'"' + b'\\"' * 200_000,
        b'"\\\n' * 100_000,
        b'"' * 400_001,
    ],
)
def test_a_text_without_end_is_read_once(text: bytes) -> None:
    """Each quotation mark of a string that never ended began a look through all the rest."""
    assert depth_of(text) <= 1
    with pytest.raises(CallerError):
        check_event(text[:65_000], bytes_max=65_536, depth_max=64)


@given(
    st.recursive(
        st.none() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_depth_is_counted_outside_strings(value: object) -> None:
    def depth(part: object) -> int:
        parts = (
            part
            if isinstance(part, list)
            else list(part.values())
            if isinstance(part, dict)
            else None
        )
        return 0 if parts is None else 1 + max(map(depth, parts), default=0)

    assert depth_of(msgspec.json.encode(value)) == depth(value)


def test_an_input_is_json_with_the_event_as_it_was_sent() -> None:
    data = event_input(7, b'{"type":"a", "n":1.0}', Identity("c1", 'u"1').sender)
    assert data == b'[1,7,{"type":"a", "n":1.0},{"id":"c1","user":"u\\"1"}]'


# --- conditions


@pytest.mark.parametrize(
    ("wanted", "actual", "holds"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", {"a": "x"}, True),
        ({"a": "x"}, {"a": "x"}, True),
        ({"a": "x"}, {"a": {"x": "y"}}, True),
        ({"a": "x"}, "a", False),
        ("a.x", {"a": "x"}, True),
        ({"a": "x", "b": "y"}, {"a": "x", "b": "y", "c": "z"}, True),
        ({"a": "x", "b": "n"}, {"a": "x", "b": "y"}, False),
    ],
)
def test_matches_as_xstate_does(wanted: object, actual: object, holds: bool) -> None:
    assert matches(wanted, actual) is holds


@pytest.mark.parametrize(
    "value", [None, 1, "", "idle", {}, {"tag": 1}, {"tag": "x", "more": 1}, {"matches": 1}, []]
)
def test_bad_conditions_are_refused(value: object) -> None:
    with pytest.raises(BadRequest):
        read_condition(value)


def test_conditions_hold_on_snapshots() -> None:
    snapshot = b'{"value":{"a":"x"},"status":"active","tags":["t"]}'
    assert read_condition({"tag": "t"}).holds(snapshot)
    assert read_condition({"matches": "a"}).holds(snapshot)
    assert not read_condition("done").holds(snapshot)
    assert read_condition("done").holds(b'{"status":"done"}')


# --- addresses


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


# --- frames and rates


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_frames_are_spelled_as_websockets_spells_them(size: int) -> None:
    from websockets.frames import Frame, Opcode

    json = b"x" * size
    assert frames.text_frame(json) == Frame(Opcode.TEXT, json).serialize(mask=False)


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


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60))
def test_no_second_has_more_than_twice_the_rate(times: list[float]) -> None:
    rate = Rate(5)
    passed = [now for now in sorted(times) if rate.take(1, now)]
    for start in passed:
        assert sum(start <= now < start + 1 for now in passed) <= 10
    assert all(later >= earlier for earlier, later in itertools.pairwise(passed))


# --- members


def told(presence: Presence | None) -> dict[str, Any]:
    assert presence is not None
    said: dict[str, Any] = msgspec.json.decode(frames.to_json(presence))
    return said


def test_a_members_life() -> None:
    members, ann, guest = Members(), Identity("ann", returns=True), Identity("guest")
    assert members.arrive(ann, "t1")
    assert not members.arrive(ann, "t2"), "a second window is no second member"
    assert not members.depart(ann)
    assert members.depart(ann), "somebody who may come back is waited for"
    assert "ann" in members
    assert not members.is_connected(MemberId("ann"))
    members.arrive(ann, "t3")
    assert not members.give_up(MemberId("ann")), "they came back"
    assert msgspec.json.decode(frames.members_json(members.listing()))["members"] == [
        {"id": "ann", "user": None, "joined_at": "t1"}
    ]
    members.arrive(guest, "t4")
    assert not members.depart(guest)
    assert "guest" not in members, "nobody could know them again"
    assert members.depart(ann)
    assert members.give_up(MemberId("ann"))
    assert not members.give_up(MemberId("ann"))
    assert len(members) == 0


def test_users_are_members_whatever_their_connection() -> None:
    members = Members()
    assert members.arrive(Identity("c1", "ann"), "t")
    assert not members.arrive(Identity("c2", "ann"), "t")
    assert msgspec.json.decode(frames.members_json(members.listing())) == {
        "count": 1,
        "members": [{"id": "ann", "user": "ann", "joined_at": "t"}],
    }


def test_only_news_is_told() -> None:
    members = Members()
    assert members.news() is None
    members.arrive(Identity("a"), "t")
    assert told(members.news())["joined"] == [{"id": "a", "user": None, "joined_at": "t"}]
    assert members.news() is None
    members.arrive(Identity("b"), "t")
    members.depart(Identity("b"))
    assert members.news() is None, "who came and left in between is no news"
    members.describe(MemberId("a"), b'{"x":1}')
    assert told(members.news()) == {
        "type": "presence",
        "count": 1,
        "members": [{"id": "a", "user": None, "joined_at": "t", "metadata": {"x": 1}}],
        "joined": [],
        "left": [],
        "changed": [{"id": "a", "user": None, "joined_at": "t", "metadata": {"x": 1}}],
    }
    for number in range(60):
        members.arrive(Identity(f"m{number}"), "t")
    assert set(told(members.news())) == {"type", "count", "joined", "left"}
    for number in range(60, 200):
        members.arrive(Identity(f"m{number}"), "t")
    assert len(told(members.news())["members"]) == LISTED_MAX, (
        "a diff that is longer than the list is the list"
    )


def test_a_crowd_that_shrinks_is_known_to_the_last() -> None:
    members, known = Members(), dict[str, Any]()
    for number in range(130):
        members.arrive(Identity(f"m{number}"), "t")
    members.news()
    known = {member["id"]: member for member in told(members.listing())["members"]}
    for number in range(70):
        members.depart(Identity(f"m{number}"))
        if number % 5 == 4:
            said = told(members.news())
            if "members" in said:
                known = {member["id"]: member for member in said["members"]}
            else:
                known = {
                    name: member for name, member in known.items() if name not in said["left"]
                } | {member["id"]: member for member in said["joined"]}
    assert list(known) == [f"m{number}" for number in range(70, 130)]


def test_a_client_key_cannot_be_read_off_its_id() -> None:
    key = "k" * 16
    assert id_of_key(key, MachineId("m"), SessionId("s")) == id_of_key(
        key, MachineId("m"), SessionId("s")
    )
    assert (
        len(
            {
                id_of_key(key, MachineId("m"), SessionId("s")),
                id_of_key(key, MachineId("m"), SessionId("t")),
                id_of_key(key, MachineId("n"), SessionId("s")),
                id_of_key(key + "k", MachineId("m"), SessionId("s")),
            }
        )
        == 4
    )
    for wrong in ("", "k" * 15, "k" * 129, "\ud800" * 16):
        with pytest.raises(BadRequest):
            id_of_key(wrong, MachineId("m"), SessionId("s"))
