"""Members of a session: who counts as present, and what of it is news."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from machinehub.errors import BadRequest
from machinehub.ids import MachineId, MemberId, SessionId
from machinehub.protocols.native import frames
from machinehub.session.decide.identity import Identity, id_of_key
from machinehub.session.decide.members import LISTED_MAX, Members

if TYPE_CHECKING:
    from machinehub.session.messages import Presence

pytestmark = pytest.mark.core


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
    assert members.arrive(Identity("c1", "ann", roles=("a",)), "t")
    assert not members.arrive(Identity("c1", "ann", roles=("a",)), "t")
    assert msgspec.json.decode(frames.members_json(members.listing())) == {
        "count": 1,
        "members": [{"id": "c1", "user": "ann", "joined_at": "t", "roles": ["a"]}],
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
