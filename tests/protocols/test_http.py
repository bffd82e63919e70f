"""Machines and sessions by their own URLs: requests, waiting, streams."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.support import COUNTER, Client, problem, until

DONE = (
    'import { createMachine } from "xstate"; export const machine = createMachine({ initial: '
    '"a", states: { a: { on: { END: "f", TAG: "t" } }, t: { tags: "tagged", on: { END: "f" } }, '
    'f: { type: "final" } }, output: { ok: true } });'
)


async def test_a_machine_by_accept(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="accept")
    answer = (await client.http.get(f"/{machine}", headers={"Accept": "application/json"})).json()
    assert {"id", "name", "version", "definition", "events", "url", "private"} == answer.keys()
    assert answer["events"] == ["decrement", "increment"]
    assert answer["definition"]["root"]["states"]["active"]["type"] == "atomic"
    page = await client.http.get(
        f"/{machine}", headers={"Accept": "text/html,application/xhtml+xml"}
    )
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert (
        (await client.http.get(f"/{machine}/s", headers={"Accept": "text/html"}))
        .headers["content-type"]
        .startswith("text/html")
    )
    for name in ("client.js", "index.html", "icon.svg"):
        assert (await client.http.get(f"/assets/{name}")).status_code == 200
    problem(await client.http.get("/assets/page.py"), 404, "not_found")
    assert (await client.http.get("/assets/..%2Fpage.py")).status_code == 404


async def test_events_etags_and_conditions(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="etag")
    first = await client.http.get(f"/{machine}/s")
    assert first.json() == {
        "type": "snapshot",
        "seq": 1,
        "version": 1,
        "snapshot": {"value": "active", "context": {"count": 0}, "status": "active", "tags": []},
    }
    assert first.headers["etag"] == '"1"'
    assert (
        await client.http.get(f"/{machine}/s", headers={"If-None-Match": '"1"'})
    ).status_code == 304
    sent = await client.http.post(
        f"/{machine}/s", json={"type": "increment"}, headers={"If-Match": '"1"'}
    )
    assert sent.json() == {
        "seq": 2,
        "outcome": "accepted",
        "changed": True,
        "taken": True,
        "snapshot": {"value": "active", "context": {"count": 1}, "status": "active", "tags": []},
    }
    problem(
        await client.http.post(
            f"/{machine}/s", json={"type": "increment"}, headers={"If-Match": '"1"'}
        ),
        412,
        "seq_moved",
    )
    problem(
        await client.http.post(
            f"/{machine}/s", json={"type": "increment"}, headers={"If-Match": "1"}
        ),
        400,
        "invalid_if_match",
    )
    ignored = (await client.http.post(f"/{machine}/s", json={"type": "nothing"})).json()
    assert (ignored["seq"], ignored["changed"], ignored["snapshot"]["context"]) == (
        3,
        False,
        {"count": 1},
    )


async def test_an_idempotency_key_counts_once(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="idempotent")
    responses = await asyncio.gather(
        *(
            client.http.post(
                f"/{machine}/s", json={"type": "increment"}, headers={"Idempotency-Key": "k"}
            )
            for _ in range(10)
        )
    )
    assert {response.json()["seq"] for response in responses} == {2}
    assert (await client.http.get(f"/{machine}/s")).json()["snapshot"]["context"]["count"] == 1


async def test_creating_with_input(client: Client) -> None:
    machine = await client.deploy(
        (
            'import { createMachine } from "xstate"; export default createMachine({ context: ({ '
            "input }) => ({ got: input ?? null }) });"
        ),
        name="input",
    )
    created = await client.http.put(f"/{machine}/s", json={"input": {"n": [1]}})
    assert created.status_code == 201
    assert created.json()["snapshot"]["context"] == {"got": {"n": [1]}}
    problem(await client.http.put(f"/{machine}/s", json={"input": 1}), 409, "session_exists")
    assert (await client.http.put(f"/{machine}/t")).json()["snapshot"]["context"] == {"got": None}
    problem(await client.http.put(f"/{machine}/u", content=b'{"input":'), 400, "invalid_json")
    problem(
        await client.http.put(f"/{machine}/u", content=b'{"input":' + b"[" * 70 + b"]" * 70 + b"}"),
        400,
        "input_too_deep",
    )
    problem(
        await client.http.put(f"/{machine}/u", content=b'{"input":"' + b"x" * 70_000 + b'"}'),
        413,
        "input_too_large",
    )


async def test_waiting(client: Client) -> None:
    machine = await client.deploy(DONE, name="wait")
    waiting = asyncio.create_task(
        client.http.post(
            f"/{machine}/s/wait", json={"condition": {"tag": "tagged"}, "timeout_ms": 5000}
        )
    )
    await until(lambda: client.watchers(machine, "s") == 1)
    assert (
        await client.http.post(
            f"/{machine}/s/wait", json={"condition": {"matches": "t"}, "event": {"type": "TAG"}}
        )
    ).status_code == 200
    assert (await waiting).json()["snapshot"]["tags"] == ["tagged"]
    problem(
        await client.http.post(f"/{machine}/s/wait", json={"condition": "done", "timeout_ms": 30}),
        408,
        "wait_timeout",
    )
    assert (
        await client.http.post(
            f"/{machine}/s/wait", json={"condition": "done", "event": {"type": "END"}}
        )
    ).json()["snapshot"]["output"] == {"ok": True}
    problem(
        await client.http.post(f"/{machine}/s/wait", json={"condition": {"tag": "never"}}),
        412,
        "session_ended",
    )
    problem(
        await client.http.post(f"/{machine}/s/wait", json={"condition": "later"}),
        400,
        "invalid_condition",
    )
    problem(
        await client.http.post(
            f"/{machine}/s/wait", json={"condition": "done", "timeout_ms": 10**9}
        ),
        400,
        "invalid_timeout",
    )
    problem(await client.http.post(f"/{machine}/s", json={"type": "END"}), 409, "session_finished")


@pytest.mark.parametrize(
    ("event", "status", "code"),
    [
        (b"", 422, "invalid_event"),
        (b"x", 422, "invalid_event"),
        (b"{}", 422, "invalid_event"),
        (b'{"type":1}', 422, "invalid_event"),
        (b'{"type":"xstate.stop"}', 422, "invalid_event"),
        (b'{"type":"xstate.routes"}', 422, "invalid_event"),
        (b'{"type":"xstate.after.1000.m"}', 422, "invalid_event"),
        (b'{"type":"presence.joined"}', 422, "invalid_event"),
        (b'{"type":"a","v":NaN}', 422, "invalid_event"),
        (b'{"type":"a","v":"' + b"x" * 65536 + b'"}', 413, "event_too_large"),
        (b'{"type":"a","v":' + b"[" * 65 + b"]" * 65 + b"}", 400, "event_too_deep"),
    ],
)
async def test_bad_events(client: Client, event: bytes, status: int, code: str) -> None:
    machine = await client.deploy(COUNTER, name="bad-events")
    problem(await client.http.post(f"/{machine}/s", content=event), status, code)


async def test_keys_that_mean_something_elsewhere_are_data(client: Client) -> None:
    machine = await client.deploy(
        (
            'import { assign, createMachine } from "xstate"; export default createMachine({ '
            "context: { got: null, n: 0 }, on: { E: { actions: assign({ got: ({ event }) => "
            "JSON.stringify(event), n: ({ context }) => context.n + 1 }) } } });"
        ),
        name="keys",
    )
    event = b'{"type":"E","__proto__":{"polluted":1},"constructor":2,"then":3,"toJSON":4,"xstate$$type":5,"":6}'
    snapshot = (await client.http.post(f"/{machine}/s", content=event)).json()["snapshot"]
    assert (
        json.loads(snapshot["context"]["got"]).items()
        >= {
            "__proto__": {"polluted": 1},
            "constructor": 2,
            "then": 3,
            "toJSON": 4,
            "xstate$$type": 5,
            "": 6,
        }.items()
    )
    many = b'{"type":"E",' + b",".join(b'"%d":1' % n for n in range(10_000)) + b"}"
    response = await client.http.post(f"/{machine}/s", content=many)
    assert response.status_code in (200, 413)
    assert (await client.http.post(f"/{machine}/s", json={"type": "E"})).status_code == 200


@pytest.mark.parametrize(
    "session",
    ["a%2Fb", "%2E%2E", "%00", "%F0%9F%98%80", "x" * 128, "%22%3Cscript%3E", "wait", "%25"],
)
async def test_odd_session_ids_work(client: Client, session: str) -> None:
    machine = await client.deploy(COUNTER, name="odd-ids")
    assert (await client.http.post(f"/{machine}/{session}", json={"type": "increment"})).json()[
        "snapshot"
    ]["context"] == {"count": 1}


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/Nope00/s", 404, "no_such_machine"),
        ("/no", 404, "no_such_machine"),
        ("/{m}/", 400, "invalid_session_id"),
        ("/{m}/" + "x" * 129, 400, "invalid_session_id"),
        ("/{m}/%ff", 400, "invalid_session_id"),
        ("/{m}/-", 404, "not_found"),
        ("/{m}/-/anything", 404, "not_found"),
        ("/{m}/%2D/a/b/c", 404, "not_found"),
        ("/{m}/-s", 400, "invalid_session_id"),
        ("/{m}/%2Ds/wait", 400, "invalid_session_id"),
        ("/{m}/s/t", 404, "not_found"),
        ("/{m}/s/t/u", 404, "no_such_machine"),
        ("/{m}@0/s", 404, "no_such_version"),
        ("/{m}@99/s", 404, "no_such_version"),
        ("/{m}@999999999/s", 404, "no_such_version"),
    ],
)
async def test_urls_that_name_nothing(client: Client, path: str, status: int, code: str) -> None:
    machine = await client.deploy(COUNTER, name="urls")
    problem(await client.http.get(path.replace("{m}", machine)), status, code)


async def test_a_route_is_taken_by_every_way_in(client: Client) -> None:
    """`xstate.route` is what clients of XState send to go to a state that has a `route`."""
    machine = await client.deploy(
        """
        import { createMachine } from "xstate";
        export default createMachine({
          id: "pages", initial: "home",
          states: {
            home: { id: "home", route: {} },
            cart: { id: "cart", route: {} },
            paid: { id: "paid" },
          },
        });
        """,
        name="routes",
    )
    route = {"type": "xstate.route", "to": "#cart"}
    answer = await client.http.post(f"/{machine}/http", json=route)
    assert answer.json()["snapshot"]["value"] == "cart"
    async with client.socket(f"{machine}/socket") as socket:
        assert (await socket.event(route))["outcome"] == "accepted"
        await socket.settle()
        assert socket.snapshot["value"] == "cart"
        # No route leads there, and what XState itself sends to machines stays its own.
        assert (await socket.event({"type": "xstate.route", "to": "#paid"}))[
            "outcome"
        ] == "accepted"
        assert (await socket.event("xstate.done.state.pages"))["outcome"] == "rejected"
        await socket.settle()
        assert socket.snapshot["value"] == "cart"
    definition = (await client.http.get(f"/{machine}")).json()["definition"]
    assert "xstate.route" in definition["events"]


async def test_a_machine_that_did_not_change_is_not_sent_again(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="etag-machine")
    first = await client.http.get(f"/{machine}")
    same = await client.http.get(f"/{machine}", headers={"If-None-Match": first.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    await client.deploy(COUNTER + "// two", name="etag-machine")
    other = await client.http.get(f"/{machine}", headers={"If-None-Match": first.headers["etag"]})
    assert (other.status_code, other.json()["version"]) == (200, 2)
