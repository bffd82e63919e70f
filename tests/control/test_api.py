"""The deploy API and per-machine URLs over HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from starlette.routing import BaseRoute, Mount, Route

from machinehub.control.app import ControlApp
from tests.support import COUNTER, Client, problem, running_hub

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from machinehub.app import Hub


# --- deploying


async def test_deploying_and_deploying_again(client: Client) -> None:
    body = {"name": "twice", "entry": "counter.ts", "files": {"counter.ts": COUNTER}}
    first = await client.http.post("/api/v1/deployments", json=body)
    assert first.status_code == 201
    answer = first.json()
    assert answer["created"] is True
    assert answer["machine"]["name"] == "twice"
    assert answer["machine"]["url"] == f"{client.url}/{answer['machine']['id']}"
    assert answer["version"]["number"] == 1
    assert set(answer["timings_ms"]) == {"bundle", "freeze", "total"}
    again = await client.http.post("/api/v1/deployments", json=body)
    assert again.status_code == 200
    assert again.json()["created"] is False
    assert again.json()["version"] == answer["version"]
    changed = await client.http.post(
        "/api/v1/deployments", json=body | {"files": {"counter.ts": COUNTER + "\n"}}
    )
    assert (changed.status_code, changed.json()["version"]["number"]) == (201, 2)


@pytest.mark.parametrize(
    ("source", "entry", "message"),
    [
        ("export const machine = {\n  a: ;\n}", "m.ts", "m.ts:2:6"),
        ("import { x } from './nope';\nexport default x;", "m.ts", "m.ts:1:19"),
        ("import _ from 'lodash';\nexport default _;", "m.mjs", "m.mjs:1:15"),
        ("import x from '../../etc/passwd';\nexport default x;", "m.ts", "m.ts:1:15"),
        ("export const a = 1;\n\nconst b: number = undefined as any;\nb.c.d;", "m.ts", "m.ts:4:1"),
        ("{\n  bad", "m.json", "m.json:2:3"),
    ],
)
async def test_build_errors_name_the_place(
    client: Client, source: str, entry: str, message: str
) -> None:
    error = (await client.deploy_error(source, entry=entry))["errors"][0]
    assert f"{error['file']}:{error['line']}:{error['column']}" == message
    problem(await client.http.get("/api/v1/machines/broken"), 404, "no_such_machine")


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("export const a = 1, b = 2;", "no_machine"),
        ("", "no_machine"),
        ("throw new Error('x')", "machine_throws"),
        ("for (;;);", "build_cpu_exceeded"),
        (
            (
                "import { createMachine } from 'xstate'; export const a = createMachine({}); "
                "export const b = createMachine({});"
            ),
            "several_machines",
        ),
        ("import fs from 'node:fs'; export default fs;", "no_machine"),
        ("export default await import('x')", "bundle_failed"),
    ],
)
async def test_what_is_no_machine_is_refused_and_not_stored(
    client: Client, source: str, code: str
) -> None:
    assert (await client.deploy_error(source))["code"] == code
    problem(await client.http.get("/api/v1/machines/broken"), 404, "no_such_machine")


async def test_no_machine_names_the_exports_found(client: Client) -> None:
    assert (
        "first, second"
        in (await client.deploy_error("export const first = 1, second = 2"))["errors"][0]["message"]
    )


@pytest.mark.parametrize("suffix", [".ts", ".tsx", ".mts", ".js", ".mjs", ".cjs", ".json"])
async def test_all_kinds_of_files(client: Client, suffix: str) -> None:
    sources = {
        ".cjs": (
            'module.exports = require("xstate").createMachine({ initial: "a", states: { a: {} } '
            "});\nmodule.exports = { machine: module.exports }"
        ),
        ".json": json.dumps({"initial": "a", "states": {"a": {"on": {"__proto__": "a"}}}}),
    }
    source = sources.get(
        suffix,
        (
            'import { createMachine } from "xstate"; export default createMachine({ initial: "a", '
            "states: { a: {} } });"
        ),
    )
    machine = await client.deploy(source, name=f"kind-{suffix[1:]}", entry=f"m{suffix}")
    assert (await client.http.get(f"/{machine}/s")).json()["snapshot"]["value"] == "a"


async def test_several_files_and_json_and_which_export_counts(client: Client) -> None:
    files = {
        "src/m.ts": (
            'import { createMachine } from "xstate"; import { start } from "./lib/util"; import '
            'data from "../data.json"; export const other = createMachine({}); export default '
            "createMachine({ initial: start, context: data, states: { a: {}, b: {} } });"
        ),
        "src/lib/util.ts": 'export const start: string = "b";',
        "data.json": '{"n": 7}',
    }
    response = await client.http.post(
        "/api/v1/deployments", json={"name": "files", "entry": "src/m.ts", "files": files}
    )
    assert response.status_code == 201, response.text
    snapshot = (await client.http.get(f"/{response.json()['machine']['id']}/s")).json()["snapshot"]
    assert (snapshot["value"], snapshot["context"]) == ("b", {"n": 7})
    versions = (await client.http.get("/api/v1/machines/files/versions/1/files")).json()
    assert versions == {"entry": "src/m.ts", "files": files}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_body"),
        (b"{}", 400, "invalid_body"),
        (b"[" * 100_000, 400, "invalid_body"),
        (b'{"name":1,"entry":"m.ts","files":{}}', 400, "invalid_body"),
        (b'{"name":"a","entry":"m.ts","files":[]}', 400, "invalid_body"),
        (b'{"name":"","entry":"m.ts","files":{"m.ts":""}}', 400, "invalid_name"),
        (b'{"name":"../a","entry":"m.ts","files":{"m.ts":""}}', 400, "invalid_name"),
        (b'{"name":"a","entry":"m.ts","files":{}}', 422, "no_entry"),
        (b'{"name":"a","entry":"m.exe","files":{"m.exe":""}}', 422, "invalid_entry"),
        (b'{"name":"a","entry":"m.ts","files":{"m.ts":"","../x":""}}', 422, "invalid_path"),
        (b'{"name":"a","entry":"m.ts","files":{"m.ts":"","/x":""}}', 422, "invalid_path"),
        (b'{"name":"a","entry":"m.ts","files":{"m.ts":"","a/../x":""}}', 422, "invalid_path"),
        (b'{"name":"a","entry":"m.ts","files":{"m.ts":"","m.ts/x":""}}', 422, "invalid_path"),
        (b'{"name":"a","entry":"m.ts","files":{"m.ts":"","\\u0000":""}}', 422, "invalid_path"),
        (b'{"name":"a","entry":"m.ts","files":{"m.ts":"","":""}}', 422, "invalid_path"),
        (
            b'{"name":"a","entry":"m.ts","files":{"m.ts":"' + b"x" * 1_100_000 + b'"}}',
            413,
            "source_too_large",
        ),
        (
            b'{"name":"a","entry":"m.ts","files":{"m.ts":"' + b"x" * 3_000_000 + b'"}}',
            413,
            "source_too_large",
        ),
        (
            b'{"name":"a","entry":"m.ts","files":{'
            + b",".join(b'"%d.ts":""' % n for n in range(201))
            + b"}}",
            413,
            "source_too_large",
        ),
        (
            b'{"name":"a","entry":"m.ts","message":"' + b"x" * 1001 + b'","files":{"m.ts":""}}',
            400,
            "invalid_message",
        ),
    ],
)
async def test_bad_uploads(client: Client, body: bytes, status: int, code: str) -> None:
    problem(await client.http.post("/api/v1/deployments", content=body), status, code)


async def test_two_deploys_of_one_name_at_once(client: Client) -> None:
    async def deploy(number: int) -> httpx.Response:
        return await client.http.post(
            "/api/v1/deployments",
            json={"name": "race", "entry": "m.ts", "files": {"m.ts": COUNTER + "\n" * number}},
        )

    responses = await asyncio.gather(*(deploy(number) for number in range(6)))
    assert {response.status_code for response in responses} <= {201, 409}
    created = [response.json() for response in responses if response.status_code == 201]
    assert len({answer["machine"]["id"] for answer in created}) == 1
    assert sorted(answer["version"]["number"] for answer in created) == list(
        range(1, len(created) + 1)
    )


# --- machines and versions


async def test_versions_activate_and_pin(client: Client) -> None:
    def source(word: str) -> str:
        return f'import {{ createMachine }} from "xstate"; export default createMachine({{ context: {{ word: "{word}" }} }});'

    machine = await client.deploy(source("one"), name="pins")
    await client.http.get(f"/{machine}/old")
    await client.deploy(source("two"), name="pins")
    await client.deploy(source("three"), name="pins", activate=False)

    async def word(path: str) -> tuple[str, int]:
        frame = (await client.http.get(f"/{path}")).json()
        return frame["snapshot"]["context"]["word"], frame["version"]

    assert await word(f"{machine}/old") == ("one", 1)
    assert await word(f"{machine}/new") == ("two", 2)
    assert await word(f"{machine}@3/pinned") == ("three", 3)
    assert await word(f"{machine}@1/pinned") == ("three", 3)
    problem(await client.http.get(f"/{machine}@9/s"), 404, "no_such_version")
    activated = await client.http.post("/api/v1/machines/pins/versions/1/activate")
    assert activated.json()["active_version"] == 1
    assert await word(f"{machine}/newest") == ("one", 1)
    problem(
        await client.http.post("/api/v1/machines/pins/versions/99999999999/activate"),
        404,
        "no_such_version",
    )
    listed = (await client.http.get("/api/v1/machines/pins/versions?limit=2")).json()
    assert [version["number"] for version in listed["data"]] == [3, 2]
    rest = (
        await client.http.get("/api/v1/machines/pins/versions", params={"cursor": listed["next"]})
    ).json()
    assert ([version["number"] for version in rest["data"]], rest["next"]) == ([1], None)


async def test_listing_renaming_deleting(client: Client) -> None:
    for name in ("list-a", "list-b", "list-c"):
        await client.deploy(COUNTER, name=name)
    names: list[str] = []
    cursor = None
    while True:
        page = (
            await client.http.get(
                "/api/v1/machines", params={"limit": 2} | ({"cursor": cursor} if cursor else {})
            )
        ).json()
        names += [machine["name"] for machine in page["data"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert names == sorted(names)
    assert {"list-a", "list-b", "list-c"} <= set(names)
    assert (await client.http.patch("/api/v1/machines/list-a", json={"name": "renamed"})).json()[
        "name"
    ] == "renamed"
    problem(
        await client.http.patch("/api/v1/machines/renamed", json={"name": "list-b"}),
        409,
        "name_taken",
    )
    problem(
        await client.http.patch("/api/v1/machines/renamed", json={"name": "a b"}),
        400,
        "invalid_name",
    )
    machine = (await client.http.get("/api/v1/machines/list-c")).json()["id"]
    await client.http.get(f"/{machine}/s")
    assert (await client.http.delete("/api/v1/machines/list-c")).status_code == 204
    problem(await client.http.get("/api/v1/machines/list-c"), 404, "no_such_machine")
    problem(await client.http.get(f"/{machine}/s"), 404, "no_such_machine")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=x",
        "limit=501",
        "limit=-1",
        "cursor=%ff",
        "cursor=a",
        "limit=99999999999999999999",
    ],
)
async def test_bad_pages(client: Client, query: str) -> None:
    problem(
        await client.http.get(f"/api/v1/machines?{query}"),
        400,
        "invalid_cursor" if "cursor" in query else "invalid_limit",
    )


async def test_sessions_and_logs(client: Client) -> None:
    machine = await client.deploy(
        (
            'import { createMachine } from "xstate"; export default createMachine({ on: { SAY: { '
            'actions: () => console.log("said", { a: 1 }) }, BOOM: { actions: () => { throw new '
            'Error("boom"); } } } });'
        ),
        name="logs",
    )
    await client.http.post(f"/{machine}/s%2F1", json={"type": "SAY"})
    problem(
        await client.http.post(f"/{machine}/s%2F1", json={"type": "BOOM"}), 422, "machine_error"
    )
    listed = (await client.http.get("/api/v1/machines/logs/sessions")).json()["data"]
    assert [(session["id"], session["seq"], session["version"]) for session in listed] == [
        ("s/1", 2, 1)
    ]
    assert (await client.http.get("/api/v1/machines/logs/sessions/s%2F1")).json()["snapshot"][
        "status"
    ] == "active"
    lines = (await client.http.get("/api/v1/machines/logs/logs")).json()["data"]
    assert [(line["level"], line["text"]) for line in lines] == [
        ("info", 'said {"a":1}'),
        ("error", "machine_error: boom (machine.ts:1:168)"),
    ]
    assert (await client.http.delete("/api/v1/machines/logs/sessions/s%2F1")).status_code == 204
    problem(await client.http.get("/api/v1/machines/logs/sessions/s%2F1"), 404, "no_such_session")


async def test_other_sites_may_use_machines_but_not_the_api(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="cors")
    preflight = await client.http.options(
        f"/{machine}/s",
        headers={"Origin": "http://localhost:5173", "Access-Control-Request-Method": "POST"},
    )
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" in (await client.http.get(f"/{machine}/s")).headers
    assert "access-control-allow-origin" not in (await client.http.get("/api/v1/machines")).headers


async def test_pages_of_other_sites_use_the_machines_of_hubs_with_tokens_alone(
    client: Client, tmp_path: Path
) -> None:
    """An open hub is a developer's own: no page that they happen to look at drives their
    machines.
    """
    preflight = {
        "Origin": "https://elsewhere.example",
        "Access-Control-Request-Method": "POST",
    }
    machine = await client.deploy(COUNTER, name="cors-guarded")
    refused = await client.http.options(f"/{machine}/s", headers=preflight)
    problem(refused, 403, "foreign_origin")
    async with running_hub(tmp_path, token="mh_secret") as guarded:
        machine = await guarded.deploy(COUNTER)
        allowed = await guarded.http.options(f"/{machine}/s", headers=preflight)
        assert allowed.headers["access-control-allow-origin"] == "*"


async def test_unknown_paths_and_methods(client: Client) -> None:
    problem(await client.http.get("/api/v1/nothing"), 404, "not_found")
    problem(await client.http.get("/api/v2"), 404, "not_found")
    problem(await client.http.delete("/Abcdef/s"), 405, "method_not_allowed")
    problem(await client.http.put("/api/v1/machines"), 405, "method_not_allowed")
    assert (await client.http.get("/")).headers["content-type"].startswith("text/html")


async def test_a_hub_on_either_database(database_url: str, tmp_path: Path) -> None:
    async with running_hub(tmp_path / "data", database_url=database_url, workers=1) as client:
        machine = await client.deploy(COUNTER, name="either")
        assert (await client.http.post(f"/{machine}/s", json={"type": "increment"})).json()[
            "snapshot"
        ]["context"] == {"count": 1}
        assert (await client.http.get("/readyz")).json()["database"] is True
    async with running_hub(tmp_path / "data", database_url=database_url, workers=1) as client:
        assert (
            await client.http.get(f"/{machine}", headers={"Accept": "application/json"})
        ).json()["name"] == "either"
        assert (await client.http.delete("/api/v1/machines/either")).status_code == 204
        problem(await client.http.get(f"/{machine}/s"), 404, "no_such_machine")


# --- operations and tokens


def routes_of(hub: Hub) -> list[BaseRoute]:
    """All that the control plane serves."""
    control = next(face for face in hub._faces if isinstance(face, ControlApp))
    return control._app.routes


async def test_health_readiness_metrics_and_openapi(client: Client) -> None:
    assert (await client.http.get("/healthz")).json() == {"status": "ok"}
    assert (await client.http.get("/readyz")).json()["workers"] is True
    metrics = (await client.http.get("/metrics")).text
    assert "machinehub_turns" in metrics
    assert "machinehub_rejected_total" in metrics
    document = (await client.http.get("/api/v1/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    described = {
        (method.upper(), path)
        for path, calls in document["paths"].items()
        for method in calls
        if method != "parameters"
    }
    served = set()
    pages = {"/", "/assets/{name}"}  # for people
    for route in routes_of(client.hub):
        for inner in route.routes if isinstance(route, Mount) else [route]:
            assert isinstance(inner, Route)
            path = (route.path if isinstance(route, Mount) else "") + inner.path.replace(
                ":int", ""
            ).replace(":path", "")
            served |= {(method, path) for method in inner.methods or () if method != "HEAD"}
    assert {(method, path) for method, path in served if path not in pages} <= described
