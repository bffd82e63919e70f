"""Where a name stands in an upload, by its text."""

from __future__ import annotations

import pytest

from sandbox.absent import options, warnings_of
from sandbox.places import Missing, explained, find, warning_about
from sandbox.protocol.messages import BuildMessage

pytestmark = pytest.mark.core

SOURCE = """import { setup } from "xstate";
export default setup({}).createMachine({
  initial: "start",
  states: {
    start: {
      on: { go: { target: "goo", actions: ["log", "sav"], guard: "go" } },
      after: { SOON: "sav", 10: { target: "a.b" } },
      invoke: { src: "fetchIt" },
      entry: raise({ type: "start" }, { delay: "later" }),
    },
  },
});
"""


@pytest.mark.parametrize(
    ("kind", "name", "line", "column"),
    [
        ("action", "sav", 6, 51),
        ("guard", "go", 6, 66),
        ("target", "goo", 6, 27),
        ("target", "b", 7, 43),
        ("target", "sav", 7, 22),
        ("delay", "SOON", 7, 16),
        ("delay", "later", 9, 48),
        ("actor", "fetchIt", 8, 22),
        ("initial", "start", 3, 12),
    ],
)
def test_a_name_is_found_where_it_means_that(kind: str, name: str, line: int, column: int) -> None:
    assert find(kind, name, {"m.ts": SOURCE}, "m.ts") == ("m.ts", line, column)


def test_the_users_own_files_are_looked_at_alone_and_the_entry_first() -> None:
    files = {
        "a.ts": 'actions: "x"',
        "m.ts": '\nactions: "x"',
        "node_modules/p/i.js": 'actions: "y"',
    }
    assert find("action", "x", files, "m.ts") == ("m.ts", 2, 10)
    assert find("action", "y", files, "m.ts") is None
    said = warning_about(Missing("action", "y", "m"), files, "m.ts")
    assert said == BuildMessage("no action 'y' is implemented; 'm' names it")


def test_keys_that_mean_nothing() -> None:
    files = {"m.ts": 'on: { A: { target: "b", cond: "x" } },\n  "onn": {}'}
    said = warning_about(Missing("key", "cond", "m.a"), files, "m.ts")
    assert said.message == "the key 'cond' of 'm.a' means nothing to XState (XState 5 has `guard`)"
    assert (said.line, said.column) == (1, 25)
    other = warning_about(Missing("key", "onn", "m"), files, "m.ts")
    assert (other.line, other.column) == (2, 3)


def test_hostile_text_is_looked_at_quickly() -> None:
    """None of these ends within the patience of anybody if it takes the square of its length."""
    spaces = "/* import" + " " * 900_000 + '*/ import * as fs from "node:fs";'
    (said,) = warnings_of('require("node:fs")', {"m.ts": spaces})
    assert said.line == 1
    many = "".join(f'require("node:{number}");' for number in range(20_000))
    assert warnings_of(many, {"m.ts": many}) == []
    assert find("action", "x", {"m.ts": '"x"' * 50_000}, "m.ts") == ("m.ts", 1, 1)
    assert find("action", "x", {"m.ts": '"x"' * 500_000}, "m.ts") is None


def test_errors_of_xstate_are_said_plainly() -> None:
    thrown = "Invalid transition definition for state node 'm.a':\nChild state 'goo' does not exist on 'm'"
    told = explained(BuildMessage(thrown, "m.ts", 2, 1), {"m.ts": SOURCE}, "m.ts")
    assert told == BuildMessage(
        "a transition of 'm.a' leads to 'goo', which does not exist on 'm'", "m.ts", 6, 27
    )
    other = BuildMessage("something else", "m.ts", 2, 1)
    assert explained(other, {"m.ts": SOURCE}, "m.ts") is other
    unknown = BuildMessage("Child state 'z' does not exist on 'm'", "m.ts", 2, 1)
    assert explained(unknown, {"m.ts": SOURCE}, "m.ts").line == 2


def test_imports_of_nodes_modules_are_named_with_who_imports_them() -> None:
    files = {
        "m.ts": 'import x from "pkg";',
        "node_modules/pkg/i.js": "\n\nconst f = require('fs');",
    }
    (said,) = warnings_of('require("node:fs")', files)
    assert said.message.startswith("pkg imports node:fs, which is not in machines")
    assert (said.file, said.line, said.column) == ("node_modules/pkg/i.js", 3, 11)
    assert warnings_of('require("xstate")', files) == []
    assert "--alias:events=node:events" in options([])
    assert "--alias:events=node:events" not in options(["events"])
