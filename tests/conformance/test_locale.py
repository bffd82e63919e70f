"""What is written without a locale is what Node writes in the United States, in UTC; all else throws."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support import Client

VALUES = """[
  [NUMBERS.map((n) => n.toLocaleString()), NUMBERS.map((n) => n.toLocaleString("en-US"))],
  [0n, 7n, -1234567n, 10n ** 30n].map((n) => n.toLocaleString()),
  TIMES.map((t) => new Date(t)).map((d) => [d.toLocaleString(), d.toLocaleDateString("en"), d.toLocaleTimeString()]),
  new Date(NaN).toLocaleString(),
  [1234.5, new Date(0)].toLocaleString(),
  new Intl.DateTimeFormat().resolvedOptions().timeZone,
  Intl.DateTimeFormat("en", { timeZone: "utc" }).resolvedOptions().timeZone,
  "aß".toLocaleUpperCase(), "AÉ".toLocaleLowerCase("en"),
  "a".localeCompare("b"), "b".localeCompare("a"), "a".localeCompare("a"),
]"""
THROW = [
    "new Intl.NumberFormat()",
    "Intl.NumberFormat('en')",
    "new Intl.PluralRules('en')",
    "new Intl.Collator()",
    "new Intl.DateTimeFormat('en').format(0)",
    "new Intl.DateTimeFormat('en', { timeZone: 'Europe/Berlin' })",
    "(5).toLocaleString('de')",
    "(5).toLocaleString(undefined, { style: 'percent' })",
    "new Date(0).toLocaleDateString('en-GB')",
    "new Date(0).toLocaleTimeString([], { hour: '2-digit' })",
    "'a'.localeCompare('b', 'de')",
    "['b', 'a'].sort((x, y) => x.localeCompare(y, undefined, { numeric: true }))",
    "Intl.getCanonicalLocales('en')",
    "'i'.toLocaleUpperCase('tr')",
]


def numbers() -> list[float]:
    rng = random.Random(1)
    some = [0.0, -0.0, 0.5, 0.0005, 0.00049999, 1.0005, 999.9995, 999.9994, 1e21, 1.5e-7, 123456789]
    some += [rng.uniform(-1, 1) * 10 ** rng.randrange(-6, 18) for _ in range(300)]
    return some


async def in_a_machine(client: Client, expression: str, name: str) -> Any:
    source = f"""const {{ createMachine, assign }} = require("xstate");
    module.exports = createMachine({{ context: {{ r: null }}, on: {{ GO: {{ actions: assign({{ r: () => JSON.stringify({expression}) }}) }} }} }});"""
    body = {"name": name, "entry": "m.cjs", "files": {"m.cjs": source}}
    deployed = await client.http.post("/api/v1/deployments", json=body)
    machine = deployed.json()["machine"]["id"]
    return await client.http.post(f"/{machine}/s", json={"type": "GO"})


def in_node(expression: str) -> str:
    done = subprocess.run(
        ["node", "-p", f"JSON.stringify({expression})"],
        env={"PATH": os.environ["PATH"], "TZ": "UTC", "LANG": "en_US.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


async def test_without_a_locale_it_is_nodes(client: Client) -> None:
    times = [0, 951_827_696_789, 1_700_000_000_000, 1_700_043_200_000, -62_000_000_000_000]
    expression = VALUES.replace("NUMBERS", json.dumps(numbers())).replace(
        "TIMES", json.dumps(times)
    )
    answer = await in_a_machine(client, expression, "locale-same")
    assert answer.status_code == 200, answer.text
    here = json.loads(answer.json()["snapshot"]["context"]["r"])
    # Node's own narrow space before AM and PM came and went with its releases.
    assert here == json.loads((await asyncio.to_thread(in_node, expression)).replace("\u202f", " "))


@pytest.mark.parametrize("expression", THROW)
async def test_what_cannot_be_right_throws(client: Client, expression: str) -> None:
    name = f"locale-{THROW.index(expression)}"
    answer = await in_a_machine(client, expression, name)
    assert (answer.status_code, answer.json()["code"]) == (422, "machine_error")
    said = answer.json()["detail"]
    assert "machines" in said or "must be called with new" in said or "constructor" in said, said
