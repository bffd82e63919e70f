"""npm packages as people install them, in machines; and what docs/npm.md says of them."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cli.test_cli import run
from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Client

PACKAGES = {
    "date-fns": (
        "4.1.0",
        'import { addDays, format } from "date-fns";',
        'format(addDays(new Date(0), 3), "yyyy-MM-dd EEEE")',
        "1970-01-04 Sunday",
    ),
    "effect": (
        "3.19.8",
        'import { Effect, Option, pipe } from "effect";',
        "[Effect.runSync(pipe(Effect.succeed(20), Effect.map((n) => n + 1))), Option.isNone(Option.none())]",
        [21, True],
    ),
    "immer": (
        "11.0.1",
        'import { produce } from "immer";',
        "produce({ a: [1] }, (d) => { d.a.push(2); })",
        {"a": [1, 2]},
    ),
    "lodash-es": (
        "4.17.21",
        'import { groupBy, sortBy } from "lodash-es";',
        "groupBy(sortBy([3, 1, 2]), (n) => n % 2)",
        {"0": [2], "1": [1, 3]},
    ),
    "luxon": (
        "3.7.2",
        'import { DateTime } from "luxon";',
        '[DateTime.fromMillis(0).plus({ days: 1 }).toISO(), DateTime.utc(2020, 1, 2).toFormat("yyyy LLL dd")]',
        ["1970-01-02T00:00:00.000+00:00", "2020 Jan 02"],
    ),
    "nanoid": ("5.1.6", 'import { nanoid } from "nanoid";', "nanoid().length", 21),
    "rxjs": (
        "7.8.2",
        'import { map, of, toArray } from "rxjs"; const all = () => { let r; of(1, 2).pipe(map((n) => n * 2), toArray()).subscribe((v) => { r = v; }); return r; };',
        "all()",
        [2, 4],
    ),
    "ts-pattern": (
        "5.9.0",
        'import { match, P } from "ts-pattern";',
        'match({ t: "a", n: 1 }).with({ t: "a", n: P.number }, ({ n }) => "A" + n).otherwise(() => "none")',
        "A1",
    ),
    "uuid": (
        "13.0.0",
        'import { v4, v5 } from "uuid";',
        '[v4().length, v5("x", v5.URL)]',
        [36, "9c1a2ce6-5b89-5b0d-9e7d-a6c3f1f3e4a1"],
    ),
    "zod": (
        "4.1.13",
        'import { z } from "zod"; const S = z.object({ a: z.number().int(), e: z.email() });',
        '[S.safeParse({ a: 1.5, e: "x" }).success, S.safeParse({ a: 1, e: "a@b.de" }).success]',
        [False, True],
    ),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them installed."""
    folder = tmp_path_factory.mktemp("packages")
    pins = {name: version for name, (version, *_) in PACKAGES.items()}
    (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": pins}))
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
    subprocess.run(install, cwd=folder, check=True, timeout=240)
    return folder


@pytest.mark.xdist_group("packages")
@pytest.mark.parametrize("name", PACKAGES)
async def test_a_package_works_in_a_machine(client: Client, project: Path, name: str) -> None:
    _, imports, expression, expected = PACKAGES[name]
    source = f"""import {{ assign, createMachine }} from "xstate";
    {imports}
    export default createMachine({{ context: {{ r: null }}, on: {{ GO: {{ actions: assign({{ r: () => {expression} }}) }} }} }});
    """
    (project / f"{name}.js").write_text(source)
    machine = f"package-{name}"
    deployed = await run(
        "deploy", f"{name}.js", "--name", machine, "--strict", client=client, cwd=project
    )
    assert deployed.returncode == 0, deployed.stderr
    sent = await run("send", f"{machine}/s", "GO", client=client)
    assert sent.returncode == 0, sent.stderr
    found = json.loads(sent.stdout)["context"]["r"]
    if name == "uuid":
        assert found[0] == 36
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-.*", found[1])
        return
    assert found == expected


def test_the_docs_name_them() -> None:
    table = (ROOT / "docs" / "npm.md").read_text().split("<!-- packages -->")[1]
    assert re.findall(r"^\| `([^`]+)`", table, re.MULTILINE) == sorted(PACKAGES)


async def test_an_import_of_nodes_modules_names_who_imports_it(
    client: Client, tmp_path: Path
) -> None:
    (tmp_path / "package.json").write_text("{}")
    package = tmp_path / "node_modules" / "old"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"name": "old", "main": "./i.js"}')
    (package / "i.js").write_text(
        "const fs = require('fs');\nexports.read = () => fs.readFileSync('x');\nexports.plain = 5;"
    )
    (tmp_path / "m.ts").write_text(
        'import { createMachine } from "xstate"; import { plain, read } from "old";\n'
        "export default createMachine({ context: { plain }, on: { READ: { actions: () => { read(); } } } });"
    )
    deployed = await run("deploy", "m.ts", "--name", "old", client=client, cwd=tmp_path)
    assert deployed.returncode == 0, deployed.stderr
    assert (
        "warning: node_modules/old/i.js:1:12: old imports node:fs, which is not in machines"
        in deployed.stderr
    )
    refused = await run("send", "old/s", "READ", client=client)
    assert refused.returncode == 1
    assert "node:fs is not in machines, and readFileSync of it is used" in refused.stderr
