"""The language as the engine that ships speaks it, beside Node: every expression of language.txt
has the same value in both.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support import Client

EXPRESSIONS = [
    line
    for line in (Path(__file__).parent / "language.txt").read_text().splitlines()
    if line and not line.startswith("# ")
]
SPELL = """
const spell = (value, depth = 0) => {
  if (value === null || typeof value === "boolean" || typeof value === "string") return JSON.stringify(value);
  if (typeof value === "number") return Object.is(value, -0) ? "-0" : String(value);
  if (typeof value === "bigint") return value + "n";
  if (typeof value !== "object" || depth > 6) return typeof value;
  if (Array.isArray(value)) return "[" + Array.from(value, (item, index) => (index in value ? spell(item, depth + 1) : "hole")).join(",") + "]";
  return "{" + Reflect.ownKeys(value).map((key) => String(key) + ":" + spell(value[key], depth + 1)).join(",") + "}";
};
const tried = (work) => { try { return spell(work()); } catch (error) { return "throws " + error.name; } };
"""


def script() -> str:
    listed = ",\n".join(f"() => ({expression})" for expression in EXPRESSIONS)
    return f"{SPELL}\nconst works = [\n{listed}\n];\n"


def node_says() -> list[str]:
    run = subprocess.run(
        ["node", "--input-type=commonjs"],
        input=script() + "console.log(JSON.stringify(works.map(tried)))",
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"TZ": "UTC"},
    )
    assert run.returncode == 0, run.stderr
    said: list[str] = json.loads(run.stdout)
    return said


async def test_every_expression_is_what_node_says(client: Client) -> None:
    expected = node_says()
    source = (
        'import { createMachine } from "xstate";\n'
        + script()
        + "const built = works.map(tried);\nexport default createMachine({ context: () => ({ built, alive: works.map(tried) }) });"
    )
    machine = await client.deploy(source, name="language", entry="language.js")
    context = (await client.http.get(f"/{machine}/s")).json()["snapshot"]["context"]
    for moment in ("built", "alive"):  # while the image was made, and in a session thawed from it
        differing = {
            expression: (there, here)
            for expression, there, here in zip(EXPRESSIONS, expected, context[moment], strict=True)
            if there != here
        }
        assert differing == {}, moment
    assert len(EXPRESSIONS) > 200
