"""Who may send what and who sees what, inside a worker: the table, the functions, and their walls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from sandbox.access import at_path, is_among, is_in, most_exact
from sandbox.instance import Fault, LiveMachine
from sandbox.judge import Judge
from sandbox.protocol.access import Rule
from sandbox.traps import Trap
from tests.sandbox.sandboxes import MEMORY, NOW_MS, Sandbox

if TYPE_CHECKING:
    from sandbox.loaded import LoadedImage

REVIEW = """
const {assign,createMachine}=require("xstate");
module.exports={default:createMachine({context:{owner:"ada",secret:"s3cr3t",hands:{ada:[1],bob:[2]}},initial:"draft",
states:{draft:{on:{submit:"review",edit:{}}},review:{initial:"legal",states:{legal:{},done:{}},on:{approve:"closed","edit.text":{}}},closed:{}}}),%s};
"""


def script(exports: str = "") -> str:
    return REVIEW % exports


def member(**more: Any) -> dict[str, Any]:
    return {"id": "m", **more}


def send(machine: LiveMachine, event: Any, sender: Any) -> bytes | Fault:
    event = {"type": event} if isinstance(event, str) else event
    data = b"[1,7,%b,%b]" % (msgspec.json.encode(event), msgspec.json.encode(sender))
    return machine.apply(data, NOW_MS, cpu_s=0.2)


def code_of(outcome: bytes | Fault) -> str | None:
    return outcome.code if isinstance(outcome, Fault) else None


RULES = [
    Rule(events=["approve"], states=["review.*"], roles=["editor"]),
    Rule(events=["edit.*"], sub="context.owner"),
    Rule(events=["edit.*"], roles=["admin"]),
    Rule(events=["submit"], roles=[]),
]


@pytest.fixture(scope="module")
def guarded(sandbox: Sandbox) -> LoadedImage:
    return sandbox.image_of(script(), rules=RULES)


def test_a_table_decides_by_event_state_role_and_owner(
    sandbox: Sandbox, guarded: LoadedImage
) -> None:
    machine = sandbox.started(guarded)
    editor, ada = member(roles=["editor"]), member(user="ada", roles=[])
    assert code_of(send(machine, "approve", editor)) == "forbidden"  # it is a draft
    assert code_of(send(machine, "edit", editor)) == "forbidden"
    assert code_of(send(machine, "edit", ada)) is None
    assert code_of(send(machine, "edit.text", member(roles=["admin"]))) is None
    assert code_of(send(machine, "submit", ada)) == "forbidden"  # nobody has a role of none
    assert code_of(send(machine, "other", member())) is None  # no rule is about it


def test_it_is_decided_on_the_state_that_the_event_meets(sandbox: Sandbox) -> None:
    rules = [Rule(events=["approve"], states=["review"], roles=["editor"])]
    machine = sandbox.started(sandbox.image_of(script(), rules=rules))
    editor = member(roles=["editor"])
    assert code_of(send(machine, "approve", editor)) == "forbidden"
    assert code_of(send(machine, "submit", member())) is None
    assert code_of(send(machine, "approve", editor)) is None
    assert code_of(send(machine, "approve", editor)) == "forbidden"


def test_a_refused_event_leaves_no_trace_in_the_memory(
    sandbox: Sandbox, guarded: LoadedImage
) -> None:
    machine, twin = sandbox.started(guarded), sandbox.started(guarded)
    assert code_of(send(machine, "approve", member())) == "forbidden"
    assert machine.memory() == twin.memory()


def test_what_was_frozen_is_guarded_by_its_snapshot(sandbox: Sandbox) -> None:
    rules = [Rule(events=["approve"], states=["review"])]
    image = sandbox.image_of(script(), rules=rules)
    machine = sandbox.started(image)
    send(machine, "submit", member())
    again = LiveMachine(
        sandbox.engine,
        image,
        machine._sizes,
        checkpoint=machine.checkpoint(),
        snapshot=b'{"value":{"review":"legal"},"context":{}}',
    )
    assert code_of(send(again, "approve", member())) is None


def test_replays_ask_nobody(sandbox: Sandbox, guarded: LoadedImage) -> None:
    machine = sandbox.thaw(guarded)
    sent = b'[1,7,{"type":"submit"},{"id":"m"}]'
    machine.replay([(b"[0,5]", NOW_MS), (sent, NOW_MS)])
    assert code_of(send(machine, "approve", member(roles=["editor"]))) is None


@pytest.mark.parametrize(
    ("access", "sender", "code"),
    [
        ("({member})=>member.roles.includes('editor')", member(roles=["editor"]), None),
        ("({member})=>member.roles.includes('editor')", member(), "forbidden"),
        ("({state})=>state.matches('draft')", member(), None),
        ("({state})=>state.matches({review:'legal'})", member(), "forbidden"),
        ("({context,member})=>context.owner===member.user", member(user="ada"), None),
        ("({event})=>event.type!=='submit'", member(), "forbidden"),
        ("()=>1", member(), "access_failed"),
        ("async()=>true", member(), "access_failed"),
        ("()=>{throw new Error('no')}", member(), "access_failed"),
        ("()=>{for(;;);}", member(), "access_failed"),
        ("()=>{const a=[];for(;;)a.push(new Array(1e5).fill(1))}", member(), "access_failed"),
        ("function f(){return f()}", member(), "access_failed"),
        ("({context})=>{context.owner='eve';return true}", member(), None),
    ],
)
def test_a_function_decides(
    sandbox: Sandbox, access: str, sender: dict[str, Any], code: str | None
) -> None:
    machine = sandbox.started(sandbox.image_of(script(f"access:{access}")))
    outcome = send(machine, "submit", sender)
    assert code_of(outcome) == code, outcome
    if isinstance(outcome, bytes):
        assert b"eve" not in outcome


def test_a_function_keeps_nothing_from_one_question_to_the_next(sandbox: Sandbox) -> None:
    access = "(()=>{let asked=0;return()=>++asked===1})()"
    machine = sandbox.started(sandbox.image_of(script(f"access:{access}")))
    assert [code_of(send(machine, "edit", member())) for _ in range(3)] == [None] * 3


def test_the_last_of_two_types_counts_as_it_does_in_the_machine(
    sandbox: Sandbox, guarded: LoadedImage
) -> None:
    machine = sandbox.started(guarded)
    for text in (b'{"type":"edit","type":"submit"}', b'{"type":"edit","\\u0074ype":"submit"}'):
        outcome = machine.apply(b'[1,7,%b,{"id":"m"}]' % text, NOW_MS, cpu_s=0.2)
        assert code_of(outcome) == "forbidden"


# --- views


def ask(
    sandbox: Sandbox, exports: str, members: list[Any], emitted: tuple[Any, ...] = ()
) -> tuple[list[int], list[Any]]:
    image = sandbox.image_of(script(exports))
    snapshot = {"value": "draft", "tags": ["t"], "context": {"owner": "ada", "hands": {"ada": [1]}}}
    parts = [[1, members], snapshot, list(emitted)]
    question = b"\n".join(map(msgspec.json.encode, parts))
    judge = Judge(sandbox.engine, image, memory_bytes_max=MEMORY)
    of, shown = msgspec.json.decode(judge.ask(question, NOW_MS, cpu_s=0.5))
    return of, shown


def test_each_member_has_a_view(sandbox: Sandbox) -> None:
    view = "view:({snapshot,member})=>({hand:snapshot.context.hands[member.user]})"
    of, shown = ask(sandbox, view, [member(user="ada"), member(user="bob")])
    assert [shown[at] for at in of] == [[1, {"hand": [1]}, [], 0], [1, {}, [], 0]]


def test_members_with_equal_roles_share_a_view_that_asks_for_nothing_else(sandbox: Sandbox) -> None:
    view = "view:({snapshot,member})=>[member.roles.length,snapshot.hasTag('t')]"
    of, shown = ask(sandbox, view, [member(), member(roles=["a"]), member(user="x")])
    assert (of, len(shown)) == ([0, 1, 0], 2)
    assert [each[3] for each in shown] == [1, 1]


def test_a_view_cannot_change_what_the_next_one_gets(sandbox: Sandbox) -> None:
    view = "view:({snapshot,member})=>{const o=snapshot.context.owner;snapshot.context.owner=member.id;return o}"
    of, shown = ask(sandbox, view, [{"id": "a"}, {"id": "b"}])
    assert [shown[at][1] for at in of] == ["ada", "ada"]


def test_a_view_that_fails_shows_nothing_to_that_member_alone(sandbox: Sandbox) -> None:
    view = "view:({member})=>{if(member.id==='a')throw new Error('s3cr3t');return 1}"
    of, shown = ask(sandbox, view, [{"id": "a"}, {"id": "b"}])
    assert [shown[at][0] for at in of] == [0, 1]
    assert shown[of[0]][1]["code"] == "view_failed"


@pytest.mark.parametrize("view", ["async()=>1", "()=>'x'.repeat(300000)", "()=>1n"])
def test_what_is_no_view(sandbox: Sandbox, view: str) -> None:
    of, shown = ask(sandbox, f"view:{view}", [member()])
    assert shown[of[0]][0] == 0


def test_emitted_events_are_heard_by_those_to_whom_they_are_shown(sandbox: Sandbox) -> None:
    emitted = ({"type": "dealt", "to": "ada"}, {"type": "dealt", "to": "bob"})
    seen = "view:()=>1,viewEmitted:({event,member})=>event.to===member.user?event:undefined"
    of, shown = ask(sandbox, seen, [member(user="ada")], emitted)
    assert shown[of[0]][2] == [emitted[0], None]
    of, shown = ask(sandbox, "view:()=>1", [member(user="ada")], emitted)
    assert shown[of[0]][2] == [None, None]


def test_what_finds_no_room_is_left_for_another_question(sandbox: Sandbox) -> None:
    view = "view:({member})=>member.id+'x'.repeat(100000)"
    of, shown = ask(sandbox, view, [{"id": str(n)} for n in range(10)])
    assert 1 <= len(of) < 10
    assert len(shown) == len(of)


@pytest.mark.parametrize("view", ["()=>{for(;;);}", "function f(){return f()}"])
def test_a_view_that_takes_too_much_ends(sandbox: Sandbox, view: str) -> None:
    try:
        of, shown = ask(sandbox, f"view:{view}", [member()])
    except Trap:
        return
    assert shown[of[0]][0] == 0


# --- the table's words


@pytest.mark.core
@pytest.mark.parametrize(
    ("type_", "expected"),
    [("edit", [1, 2]), ("edit.text", [0]), ("edit.a.b", [1, 2]), ("x", [3]), ("editor", [3])],
)
def test_the_most_exact_rules_count(type_: str, expected: list[int]) -> None:
    patterns = [["edit.text"], ["edit.*"], ["nothing", "edit.*"], ["*"]]
    rules = [Rule(events=events) for events in patterns]
    assert [rules.index(each) for each in most_exact(rules, type_)] == expected


@pytest.mark.core
@pytest.mark.parametrize(
    ("value", "patterns", "inside"),
    [
        ("review", ["review"], True),
        ("review", ["review.*"], True),
        ({"review": "legal"}, ["review"], True),
        ({"review": "legal"}, ["review.legal"], True),
        ({"review": "legal"}, ["review.done"], False),
        ({"a": {"b": {}}, "c": "d"}, ["c.d"], True),
        ({"a": {"b": {}}, "c": "d"}, ["a.b.x"], False),
        ("reviewed", ["review.*"], False),
        (None, ["*"], True),
        (None, ["a"], False),
    ],
)
def test_states_are_named_by_their_paths(value: Any, patterns: list[str], inside: bool) -> None:
    assert is_in(value, patterns) is inside


@pytest.mark.core
@pytest.mark.parametrize(
    ("there", "user", "is_there"),
    [
        ("ada", "ada", True),
        ("bob", "ada", False),
        (["bob", "ada"], "ada", True),
        ({"ada": 1}, "ada", True),
        ("adamant", "ada", False),
        (None, None, False),
        (7, "7", False),
    ],
)
def test_a_user_stands_at_a_path(there: Any, user: str | None, is_there: bool) -> None:
    found = at_path({"context": {"of": there}}, "context.of")
    assert found == there
    assert is_among(user, found) is is_there
    assert at_path({"context": {"of": there}}, "context.none.of") is None
