"""Where in an upload a name stands that a machine uses and that is not there: a typo.

Decides by looking at the text, without parsing it: a name is a string between quotes, and what key
stands before it tells whether it is an action's, a guard's, a state's. Of several places the first
that fits best is taken.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.protocol.messages import BuildMessage

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS: Final = {
    "action": frozenset({"actions", "entry", "exit", "enqueue", "type"}),
    "guard": frozenset({"guard", "and", "or", "not", "check", "type"}),
    "actor": frozenset({"src", "spawn", "spawnChild"}),
    "delay": frozenset({"delay", "after"}),
    "target": frozenset({"target", "on", "after", "always"}),
    "initial": frozenset({"initial"}),
    "key": frozenset(),
}
"""Behind which keys, or calls, the name of what kind stands."""
_ANY_KEY: Final = re.compile(
    r"\b("
    + "|".join(sorted(frozenset().union(*KEYS.values()) | {"on", "id", "tags", "params"}))
    # "and", "or" and "not" are words of comments, too, but for where they are called.
    + r")\b(?=\s*[:(])"
)
INSTEAD: Final = {
    "cond": "`guard`",
    "in": "the guard `stateIn`",
    "internal": "`reenter`, and does not re-enter without it",
    "data": "`output`",
    "services": "`actors`",
    "activities": "`invoke`",
}
"""Keys of XState 4."""
LOOKED_AT: Final = 200_000
"""Characters of a file: nobody writes longer ones, and what looks for names must not take long."""
OCCURRENCES_MAX: Final = 200
"""Of one name in a file."""
BEFORE_CHARS: Final = 300
"""How far before a name its key is looked for."""
_ERRORS: Final = (
    (
        "initial",
        re.compile(
            r'Initial state node "(?P<name>[^"]*)" not found on parent state node #(?P<of>.*)'
        ),
        "the initial state {name!r} of {of!r} does not exist",
    ),
    (
        "target",
        re.compile(
            r"Invalid transition definition for state node '(?P<of>[^\n]*)':\n"
            r"Child state '(?P<name>.*?)' does not exist on '(?P<on>.*)'"
        ),
        "a transition of {of!r} leads to {name!r}, which does not exist on {on!r}",
    ),
    (
        "target",
        re.compile(r"Child state node '(?P<name>.*?)' does not exist on machine '(?P<on>.*)'"),
        "a transition leads to {name!r}, which does not exist on the machine {on!r}",
    ),
    (
        "target",
        re.compile(r"Child state '(?P<name>.*?)' does not exist on '(?P<on>.*)'"),
        "a transition leads to {name!r}, which does not exist on {on!r}",
    ),
)
"""What XState throws for a state that is not there, and how that is said here."""


class Missing(msgspec.Struct, frozen=True):
    """A name that nothing implements, as the guest found it (guest/prelude/missing.ts)."""

    kind: str
    """"action", "guard", "actor" or "delay"; "key" for a key of a config that means nothing."""
    name: str
    state: str
    """The id of the state that names it first."""


def warning_about(missing: Missing, files: dict[str, str], entry: str) -> BuildMessage:
    """The warning about a name that nothing implements, with its place where that is found."""
    text = f"no {missing.kind} {missing.name!r} is implemented; {missing.state!r} names it"
    if missing.kind == "key":
        instead = f" (XState 5 has {INSTEAD[missing.name]})" if missing.name in INSTEAD else ""
        text = f"the key {missing.name!r} of {missing.state!r} means nothing to XState{instead}"
    place = find(missing.kind, missing.name, files, entry)
    return BuildMessage(text, *place) if place else BuildMessage(text)


def explained(error: BuildMessage, files: dict[str, str], entry: str) -> BuildMessage:
    """An error of a build. Where XState threw it for a state that is not there: in plain words, at
    the place of the name. Its own place is that of the whole machine.
    """
    for kind, pattern, text in _ERRORS:
        found = pattern.search(error.message)
        if found is None:
            continue
        place = find(kind, found["name"], files, entry) or (error.file, error.line, error.column)
        return BuildMessage(text.format(**found.groupdict()), *place)
    return error


def find(kind: str, name: str, files: dict[str, str], entry: str) -> tuple[str, int, int] | None:
    """(file, line, column), both from 1, of the name in the uploader's own files."""
    own = [path for path in files if "node_modules/" not in path and len(files[path]) <= LOOKED_AT]
    own.sort(key=lambda path: path != entry)
    best: tuple[int, str, int] | None = None
    for path in own:
        for rank, at in _occurrences(kind, name, files[path]):
            if best is None or rank > best[0]:
                best = rank, path, at
        if best is not None and best[0] == _SURE:
            break
    if best is None:
        return None
    _, path, at = best
    before = files[path][:at]
    return path, before.count("\n") + 1, at - (before.rfind("\n") + 1) + 1


_SURE: Final = 2


def _occurrences(kind: str, name: str, text: str) -> Iterator[tuple[int, int]]:
    """How sure it is that the name stands there for what it is looked for, and where."""
    quoted = re.escape(name)
    if kind == "target":  # a path of keys may lead there
        quoted = rf"(?:[^'\"`\n]{{0,200}}\.)?{quoted}"
    pattern = rf"(?P<quote>['\"`]){quoted}(?P=quote)"
    if kind in ("delay", "key") and name.isidentifier():
        pattern += rf"|\b{name}(?=\s*:)"
    for found in islice(re.finditer(pattern, text), OCCURRENCES_MAX):
        at = found.start()
        keys = _ANY_KEY.findall(text[max(0, at - BEFORE_CHARS) : at])
        fits = bool(keys) and keys[-1] in KEYS[kind]
        is_key = re.match(r"\s*:", text[found.end() : found.end() + 20]) is not None
        if kind == "key":
            yield (_SURE if is_key else 0), at
        elif fits and (kind == "delay" or not is_key):
            yield _SURE, at
        else:
            yield (0 if is_key else 1), at
