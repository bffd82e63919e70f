"""Who may send what to a session: the version's table, and its `access` function.

Both are asked when an event's turn comes, on the session as it is then, and before its memory is
touched. `Guard` keeps what a session looks like for this; what the function itself says is found
out in an instance of its own (`judge.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from sandbox.protocol.access import exactness
from sandbox.protocol.inputs import is_event, read_input
from sandbox.traps import Trap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox.judge import Judge
    from sandbox.protocol.access import Rule

FORBIDDEN: Final = "this member may not send this event now"
_THE_HUBS: Final = ("webhook.", "cron.")
"""How the senders of webhooks and calendars are called, who have no roles; ids of clients have no
dots.
"""
REMEMBERED: Final = 1000
"""Types of events for which it is known which rules describe them."""


class _Event(msgspec.Struct, gc=False):
    type: str


class _Member(msgspec.Struct, gc=False):
    id: str = ""
    user: str | None = None
    roles: list[str] = []


class _Sent(msgspec.Struct, array_like=True, gc=False):
    """An input that is an event (`protocol/inputs.py`), as far as the table asks."""

    shape: int
    seed: int
    event: _Event
    sender: _Member | None


class _Left(msgspec.Struct, array_like=True, gc=False):
    """The beginning of an outbox (`protocol/outbox.py`)."""

    format: int
    flags: int
    snapshot: Any


class _LeftRaw(msgspec.Struct, array_like=True, gc=False):
    format: int
    flags: int
    snapshot: msgspec.Raw


_read_sent: Final = msgspec.json.Decoder(_Sent).decode
_read_left: Final = msgspec.json.Decoder(_Left).decode
_read_left_raw: Final = msgspec.json.Decoder(_LeftRaw).decode
_NOBODY: Final = _Member()
_BEGINNINGS: Final = [(format_, flags) for format_ in (2, 3) for flags in range(4)]
_UNCHANGED: Final = tuple(b"[%d,%d,null" % each for each in _BEGINNINGS)
_CHANGED: Final = tuple(b"[%d,%d,{" % each for each in _BEGINNINGS)
"""How outboxes begin: nothing more of them is read before a rule asks."""


class Refused(Exception):
    """The event may not be sent: `code` and `message` for who sent it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Guard:
    """Decides for one session. `saw` tells it of each outbox, `snapshot` is what it begins with."""

    __slots__ = ("_found", "_held", "_judge", "_known", "_looks", "_parsed", "_rules")

    def __init__(self, rules: list[Rule], judge: Judge | None, snapshot: bytes) -> None:
        """`judge` asks the version's `access` function; None where there is none."""
        self._rules = rules
        self._judge = judge
        self._known: dict[str, list[Rule]] = {}
        self._looks = judge is not None or any(rule.states or rule.sub for rule in rules)
        self._held = b"[0,0,%b]" % snapshot
        """The last outbox that said what the snapshot is."""
        self._parsed: Any = None
        self._found: dict[int, tuple[bool, Any]] = {}

    @property
    def cpu_ns(self) -> int:
        """What the function took when it was asked last."""
        return self._judge.cpu_ns if self._judge is not None else 0

    def saw(self, outbox: bytes) -> None:
        """The session has had a turn."""
        if not self._looks or outbox.startswith(_UNCHANGED):
            return
        if not outbox.startswith(_CHANGED):  # of a guest that spells it in another way
            snapshot = bytes(_read_left_raw(outbox).snapshot)
            if snapshot == b"null":
                return
            outbox = b"[0,0,%b]" % snapshot
        self._held, self._parsed = outbox, None
        self._found.clear()

    def check(self, data: bytes, now_ms: int, *, cpu_s: float) -> None:
        """Whether this input may be given to the session. Raises `Refused`."""
        if self._judge is not None:
            self._judge.cpu_ns = 0
        if not is_event(data):
            return
        sent = _read_sent(data)
        type_ = sent.event.type
        if type_.startswith("presence."):
            return  # the hub's own
        if self._rules and not (sent.sender or _NOBODY).id.startswith(_THE_HUBS):
            self._check_rules(type_, sent.sender or _NOBODY)
        if self._judge is not None:
            self._ask(self._judge, data, now_ms, cpu_s)

    def _check_rules(self, type_: str, member: _Member) -> None:
        rules = self._known.get(type_)
        if rules is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            rules = self._known[type_] = most_exact(self._rules, type_)
        for rule in rules:
            if self._holds(rule, member):
                return
        if rules:
            raise Refused("forbidden", FORBIDDEN)

    def _holds(self, rule: Rule, member: _Member) -> bool:
        if rule.roles is not None and set(member.roles).isdisjoint(rule.roles):
            return False
        if rule.states is None and rule.sub is None:
            return True
        inside, there = self._found.get(id(rule)) or self._look(rule)
        return inside and (rule.sub is None or is_among(member.user, there))

    def _look(self, rule: Rule) -> tuple[bool, Any]:
        """Whether the session is in the rule's states, and what stands at its path: the same until
        the snapshot changes.
        """
        if self._parsed is None:
            self._parsed = _read_left(self._held).snapshot or {}
        inside = rule.states is None or is_in(self._parsed.get("value"), rule.states)
        there = at_path(self._parsed, rule.sub) if rule.sub is not None else None
        self._found[id(rule)] = inside, there
        return inside, there

    def _ask(self, judge: Judge, data: bytes, now_ms: int, cpu_s: float) -> None:
        given, snapshot = read_input(data), _read_left_raw(self._held).snapshot
        question = b"[0,%b,%b,%b]" % (bytes(snapshot), bytes(given.subject), bytes(given.sender))
        try:
            answer = judge.ask(question, now_ms, cpu_s=cpu_s)
        except Trap as trap:
            if trap.code == "unavailable":  # the worker is to blame: it is tried elsewhere
                raise Refused("unavailable", trap.message) from None
            raise Refused("access_failed", f"access: {trap.message}") from None
        if answer == b"[true]":
            return
        if answer == b"[false]":
            raise Refused("forbidden", FORBIDDEN)
        raise Refused("access_failed", f"access: {judge.fault_in(answer)}")


def most_exact(rules: Iterable[Rule], type_: str) -> list[Rule]:
    """The rules whose description of the event is the most exact one."""
    best, found = 0, []
    for rule in rules:
        exact = max(exactness(pattern, type_) for pattern in rule.events)
        if exact > best:
            best, found = exact, [rule]
        elif exact == best and exact:
            found.append(rule)
    return found


def is_in(value: Any, patterns: list[str]) -> bool:
    """Whether a machine whose `value` this is, is in one of these states. One that is in a state is
    in all that hold it, so `review` and `review.*` are the same.
    """
    return any(
        pattern == "*" or _reaches(value, pattern.removesuffix(".*").split("."))
        for pattern in patterns
    )


def _reaches(value: Any, path: list[str]) -> bool:
    for at, name in enumerate(path):
        if isinstance(value, str):
            return value == name and at == len(path) - 1
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def at_path(snapshot: Any, path: str) -> Any:
    """What stands at `context.owner` of a snapshot; None for nothing."""
    value = snapshot
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    return value


def is_among(user: str | None, there: Any) -> bool:
    """Whether the member's user is what stands there, or is in it."""
    return user is not None and (
        there == user or (isinstance(there, list | dict) and user in there)
    )
