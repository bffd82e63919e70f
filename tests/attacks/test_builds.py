"""Attacks by what is uploaded: each build ends with a named error, and nothing of it is stored."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from machinehub.limits import Limits
from tests.attacks.test_machines import acting, fresh
from tests.support import COUNTER, Client, running_hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BUILDS: dict[str, tuple[int, str, list[str]]] = {
    "a loop at top level": (1, "for (;;);", ["build_cpu_exceeded"]),
    "a loop that is not caught": (
        1,
        "for (;;) try { for (;;); } finally { continue }",
        ["build_cpu_exceeded"],
    ),
    "exports that loop": (
        1,
        "module.exports = new Proxy({}, { ownKeys() { for (;;); } })",
        ["build_cpu_exceeded", "no_machine"],
    ),
    "recursion at top level": (2, "const f = () => f() + 1; f();", ["machine_throws"]),
    "fifty thousand brackets": (
        2,
        "export const x = " + "[" * 50_000 + "]" * 50_000,
        [
            "bundle_failed",
            "build_crashed",
            "syntax_error",
            "machine_throws",
            "build_memory_exceeded",
        ],
    ),
    "fifty thousand calls": (
        2,
        "export const x = " + "f(" * 50_000 + ")" * 50_000,
        [
            "bundle_failed",
            "build_crashed",
            "syntax_error",
            "machine_throws",
            "build_memory_exceeded",
        ],
    ),
    "a regular expression at top level": (
        3,
        "/^(a+)+$/.test('a'.repeat(60) + 'b')",
        ["build_cpu_exceeded", "machine_throws"],
    ),
    "memory at top level": (
        4,
        "const a = []; for (;;) a.push(new Array(1000).fill(0));",
        ["build_memory_exceeded"],
    ),
    "jobs at top level": (
        5,
        "const again = () => queueMicrotask(again); again();",
        ["no_machine", "build_cpu_exceeded", "jobs_exceeded"],
    ),
    "300 000 states": (
        8,
        (
            'import { createMachine } from "xstate"; const states = {}; for (let i = 0; i < '
            "300000; "
            'i++) states["s" + i] = {}; export default createMachine({ states });'
        ),
        ["build_cpu_exceeded", "build_memory_exceeded"],
    ),
    "many transitions": (
        8,
        (
            'import { createMachine } from "xstate"; const on = {}; for (let i = 0; i < 8000; i++) '
            'on["e".repeat(600) + i] = {}; export default createMachine({ on });'
        ),
        [
            "build_cpu_exceeded",
            "build_memory_exceeded",
            "definition_too_large",
            "snapshot_too_large",
            "machine_throws",
        ],
    ),
    "importing fs": (10, 'import fs from "fs"; export default fs', ["no_machine"]),
    "reading with fs": (
        10,
        'import { readFileSync } from "fs"; export default readFileSync("/etc/passwd")',
        ["machine_throws"],
    ),
    "requiring fs": (10, "module.exports = require('fs')", ["no_machine", "machine_throws"]),
    "importing node:process": (
        10,
        'import process from "node:process"; export default process.env',
        ["machine_throws"],
    ),
    "importing a file of the host": (
        10,
        'import x from "/etc/passwd"; export default x',
        ["bundle_failed"],
    ),
    "importing above the upload": (
        10,
        'import x from "../../../../etc/passwd"; export default x',
        ["bundle_failed"],
    ),
    "importing a URL": (
        10,
        'import x from "https://example.com/x.js"; export default x',
        ["bundle_failed", "machine_throws"],
    ),
    "importing later": (
        10,
        'export default await import("fs")',
        ["bundle_failed", "machine_throws"],
    ),
    "throwing null": (11, "throw null", ["machine_throws"]),
    "throwing a proxy that loops": (
        11,
        "throw new Proxy({}, { get() { for (;;); } })",
        ["build_cpu_exceeded"],
    ),
    "a message of ten megabytes": (
        11,
        "throw new Error('x'.repeat(1e7))",
        ["machine_throws", "build_memory_exceeded"],
    ),
    "a message of markup": (
        23,
        r"throw new Error('</script><script>alert(1)</script>\u001b[2J')",
        ["machine_throws"],
    ),
}


@pytest_asyncio.fixture(scope="module", loop_scope="session", name="building")
async def _building(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """A hub whose builds have less time, so that the tests take less."""
    async with running_hub(
        tmp_path_factory.mktemp("builds"), workers=1, limits=Limits(build_cpu_ms=300)
    ) as client:
        yield client


@pytest.mark.parametrize("name", BUILDS)
async def test_a_build_that_ends_with_its_name(building: Client, name: str) -> None:
    """Refused as 422, changing nothing; the next build is served, by the same forge unless the
    build was its death.
    """
    _, source, codes = BUILDS[name]
    forge = building.hub.pool._forge
    response = await building.http.post(
        "/api/v1/deployments", json={"name": "never", "entry": "m.ts", "files": {"m.ts": source}}
    )
    assert response.status_code == 422, response.text[:300]
    assert response.json()["code"] in codes, response.text[:300]
    assert len(response.text) < 20_000
    assert (await building.http.get("/api/v1/machines/never")).status_code == 404
    assert building.hub.pool._forge is forge or response.json()["code"] == "build_crashed"
    await building.deploy(COUNTER, name="afterwards")


@pytest.mark.parametrize(("size", "files"), [(20_000_000, 1), (2_000, 201), (1_100_000, 1)])
async def test_large_uploads_are_refused_before_anything_is_built(
    client: Client, size: int, files: int
) -> None:
    body = {
        "name": "large",
        "entry": "m.ts",
        "files": {f"{number}.ts": "/" * size for number in range(files)} | {"m.ts": COUNTER},
    }
    response = await client.http.post("/api/v1/deployments", json=body)
    assert (response.status_code, response.json()["code"]) in (
        (413, "source_too_large"),
        (413, "body_too_large"),
    )


async def test_the_place_of_an_error_is_cut(client: Client) -> None:
    """A source map may call a file anything: each error was then as long."""
    sources = json.dumps(
        {"version": 3, "sources": ["A" * 300_000], "names": [], "mappings": "AAAA;" * 30}
    )
    files = {
        "m.js": acting('throw new Error("x")') + "\n//# sourceMappingURL=m.js.map",
        "m.js.map": sources,
    }
    response = await client.http.post(
        "/api/v1/deployments", json={"name": "places", "entry": "m.js", "files": files}
    )
    assert response.status_code in (200, 201), response.text[:300]
    answer = await client.http.post(
        f"/{response.json()['machine']['id']}/{fresh()}", json={"type": "X"}
    )
    assert answer.json()["code"] == "machine_error"
    assert len(answer.content) < 2_000
    refused = await client.http.post(
        "/api/v1/deployments",
        json={"name": "places", "entry": "m.js", "files": {"m.js": f'import "{"b" * 300_000}"'}},
    )
    assert refused.status_code == 422
    assert len(refused.content) < 20_000
