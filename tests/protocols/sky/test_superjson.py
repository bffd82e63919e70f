"""Reading superjson: what the npm package writes becomes what `JSON.stringify` would have written,
and what is none is refused.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machinehub.protocols.sky.superjson import NotSuperjson, read
from tests.protocols.sky.replicas import APP
from tests.support import ROOT

SAYS = """
const { createRequire } = require("node:module");
const results = [];
for (const folder of process.argv.slice(1)) {
  const { stringify } = createRequire(folder + "/")("superjson");
  const date = new Date(1.7e12), shared = { deep: [1, date] };
  for (const value of [
    { type: "a" }, [], "text", null, 4.5, true,
    { type: "a", at: date, gone: undefined, list: [undefined, NaN, Infinity, -0, date] },
    { "a.b": 1, "a\\\\.b": 2, nested: { "": { x: undefined } } },
    { one: shared, two: shared },
    { url: new URL("https://a.example/b?c=d") },
    date, undefined, -Infinity,
  ]) results.push([stringify(value), JSON.stringify(value) ?? null]);
  const cycle = { type: "a" }; cycle.self = cycle;
  for (const value of [new Map(), { x: new Set([1]) }, 1n, /a/, new Error("x"), { deep: { er: [new Map()] } }, cycle])
    results.push([stringify(value), false]);
}
console.log(JSON.stringify(results));
"""


def test_what_the_package_writes() -> None:
    """Both versions: the one that Stately's SDK brings along, and the newest."""
    done = subprocess.run(
        ["node", "-e", SAYS, str(_installed_in(APP)), str(ROOT)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    cases = json.loads(done.stdout)
    assert len(cases) == 40
    for text, wanted in cases:
        if wanted is False:
            with pytest.raises(NotSuperjson):
                read(text.encode())
        else:
            assert read(text.encode()) == (None if wanted is None else json.loads(wanted)), text


def _installed_in(app: Any) -> Any:
    """Where Stately's SDK finds its superjson."""
    found = subprocess.run(
        [
            "node",
            "-p",
            "require('node:path').dirname(require.resolve('@statelyai/sky/package.json'))",
        ],
        cwd=app,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return found.stdout.strip()


def doc(value: Any, values: Any = None, **meta: Any) -> bytes:
    return json.dumps({"json": value, "meta": {"values": values, **meta}}).encode()


@pytest.mark.core
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"ping",
        b"{}",
        b"[]",
        b'{"type":"actor.send"}',
        b'{"json":1,"meta":[]}',
        b"\xff",
        b'{"json":' + b"[" * 5000 + b"]" * 5000 + b"}",
        doc({}, {"__proto__.polluted": ["undefined"]}),
        doc({"a": 1}, {"a.b.c": ["Date"]}),
        doc([1], {"7": ["undefined"]}),
        doc([1], {"-1": ["undefined"]}),
        doc([1], {"\u0661": ["undefined"]}),
        doc({"a": {}}, {"a": [["class", "Evil"]]}),
        doc({"a": 1}, {"a": [["custom", "x"]]}),
        doc({"a": "x"}, {"a": ["bigint"]}),
        doc({"a": "x"}, {"a": 7}),
        doc({"a": "x"}, "Date"),
        doc({"a": "x"}, {"a": [{"b": ["Date"]}]}),
        doc({"a": "x"}, {"a": []}),
        doc({"a": None}, referentialEqualities={"": ["a"]}),
        doc({"a": None}, referentialEqualities=[["a"]]),
        doc({"a": 1}, referentialEqualities=7),
        doc({"a": 1}, referentialEqualities={"a": 7}),
        doc({"a": 1}, referentialEqualities=[[], 3]),
        doc({str(n): "x" for n in range(3000)}, {str(n): ["Date"] for n in range(3000)}),
    ],
)
def test_what_is_none(text: bytes) -> None:
    with pytest.raises(NotSuperjson):
        read(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@pytest.mark.core
@settings(max_examples=200)
@given(JSON, JSON, JSON)
def test_whatever_comes_is_read_or_refused(value: Any, values: Any, equal: Any) -> None:
    with contextlib.suppress(NotSuperjson):
        read(doc(value, values, referentialEqualities=equal))
