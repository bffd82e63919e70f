"""What attackers found, kept so that it stays found. Each test says what used to happen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from websockets.frames import Frame, Opcode

from tests.protocols.test_websocket import raw_socket
from tests.support import COUNTER, Client, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path


def machine(actions: str, *, context: str = "{ n: 0 }", top: str = "") -> str:
    return f'import {{ assign, createMachine, emit }} from "xstate"; {top}; export default createMachine({{ context: () => ({context}), on: {{ X: {{ actions: {actions} }}, OK: {{ actions: assign({{ n: ({{ context }}) => context.n + 1 }}) }} }} }});'


@pytest.mark.parametrize(
    ("actions", "status"),
    [
        ('() => console.log("\\ud800")', 200),
        ('() => console.log("a".repeat(4095) + "😀")', 200),
        ('assign({ c: "\\ud800" })', 200),
        ('emit({ type: "\\udc00" })', 200),
        (
            (
                "assign({ c: () => { let c = {}; for (let i = 0; i < 2000; i++) c = { c }; return "
                "c; } })"
            ),
            422,
        ),
        ('() => { Array.prototype.toJSON = () => "x"; console.log(1); }', 200),
        ("() => { Object.prototype.toJSON = () => undefined; console.log(1); }", 200),
        ("() => { Math.ceil = () => 0.5; setTimeout(() => {}, 5); }", 200),
        ('() => { RegExp.prototype.exec = () => ["", "x", "y"]; throw new Error("q"); }', 422),
        ('() => { throw new Error("\\ud800"); }', 422),
        ('() => { for (let i = 0; i < 64; i++) console.log("\\u0001".repeat(4096)); }', 200),
        ('assign({ c: () => "漢".repeat(100000) })', 422),
        ("({ context }) => { context.q = 1n; }", 422),
    ],
)
async def test_no_outbox_kills_a_worker(client: Client, actions: str, status: int) -> None:
    """Text that the hub could not decode ended the worker and left the request hanging."""
    before = client.worker_pids()
    machine_id = await client.deploy(machine(actions), name="outbox")
    response = await client.http.post(f"/{machine_id}/s", json={"type": "X"})
    assert response.status_code == status, response.text
    again = await client.http.post(f"/{machine_id}/s", json={"type": "OK"})
    assert again.status_code == 200
    assert set(before) <= set(client.worker_pids())
    await client.http.delete("/api/v1/machines/outbox")


@pytest.mark.parametrize(
    "top",
    [
        'JSON.stringify = () => "[]"',
        "JSON.stringify = () => '{\"ok\":true}'",
        'JSON.stringify = () => \'{"ok":true,"definition":{"events":5}}\'',
        'Object.prototype.toJSON = () => "hi"',
        "Object.keys = () => { throw 1; }",
        "Array.prototype.filter = () => null",
        'RegExp.prototype.exec = () => ["", "x", "y"]; throw new Error("q")',
        'throw new Error("\\ud800")',
        (
            "for (const k of Object.getOwnPropertyNames(globalThis)) try { delete globalThis[k] } "
            "catch {}"
        ),
    ],
)
async def test_no_file_kills_the_forge(client: Client, top: str) -> None:
    """A forged build report ended the forge, or was stored and made every request of the machine a
    500.
    """
    forge = client.hub.pool._forge
    response = await client.http.post(
        "/api/v1/deployments",
        json={"name": "forged", "entry": "m.ts", "files": {"m.ts": machine("() => {}", top=top)}},
    )
    assert response.status_code in (201, 422), response.text
    if response.status_code == 201:
        assert (
            await client.http.get(
                f"/{response.json()['machine']['id']}", headers={"Accept": "application/json"}
            )
        ).status_code == 200
    await client.http.delete("/api/v1/machines/forged")
    assert client.hub.pool._forge is forge


async def test_a_long_source_map_costs_no_worker(client: Client) -> None:
    """Finding the place of an error walked the whole map inside the turn's CPU budget."""
    source = machine(
        "() => { throw new Error('x'); }",
        top="let q = 0; export function pad() {" + "q++;\n" * 60_000 + "}",
    )
    before = client.worker_pids()
    machine_id = await client.deploy(source, name="long-map")
    for _ in range(3):
        assert (await client.http.post(f"/{machine_id}/s", json={"type": "X"})).json()[
            "code"
        ] == "machine_error"
    assert set(before) <= set(client.worker_pids())


async def test_a_timer_that_failed_is_tried_again(client: Client) -> None:
    """A timer whose turn was undone was lost: the machine waited for it for ever."""
    source = (
        'import { createMachine } from "xstate"; export default createMachine({ initial: "a", '
        'states: { a: { after: { 20: { target: "b", actions: () => { if (Math.random() < 2) '
        'console.log("tried"); throw new Error("no"); } } } }, b: {} } });'
    )
    machine_id = await client.deploy(source, name="retry")
    await client.http.get(f"/{machine_id}/s")

    async def tries() -> bool:
        lines = (await client.http.get("/api/v1/machines/retry/logs")).json()["data"]
        return len([line for line in lines if line["level"] == "error"]) >= 2

    await until(tries)
    # It would go on being refused, and counted, while other tests count.
    assert (await client.http.delete("/api/v1/machines/retry")).status_code == 204


async def test_timers_at_the_top_level_are_warned_about(client: Client) -> None:
    """They were taken away silently."""
    response = await client.http.post(
        "/api/v1/deployments",
        json={
            "name": "top-timer",
            "entry": "m.ts",
            "files": {"m.ts": machine("() => {}", top="setTimeout(() => {}, 5)")},
        },
    )
    assert "1 timers" in response.json()["warnings"][0]


async def test_changes_in_place_are_seen(client: Client) -> None:
    """The snapshot was only spelled anew when XState made a new object."""
    machine_id = await client.deploy(machine("({ context }) => { context.n++; }"), name="in-place")
    answer = await client.http.post(f"/{machine_id}/s", json={"type": "X"})
    assert answer.json()["snapshot"]["context"] == {"n": 1}


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Origin": "https://evil.example"}, "foreign_origin"),
        ({"Host": "evil.example"}, "foreign_host"),
        ({"Origin": "null"}, "foreign_origin"),
    ],
)
async def test_other_sites_cannot_deploy_to_an_open_hub(
    client: Client, headers: dict[str, str], code: str
) -> None:
    body = '{"name":"csrf","entry":"m.ts","files":{"m.ts":""}}'
    response = await client.http.post(
        "/api/v1/deployments", content=body, headers={"Content-Type": "text/plain", **headers}
    )
    assert (response.status_code, response.json()["code"]) == (403, code)
    preflight = await client.http.options(
        "/api/v1/deployments",
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/machines?limit=%C2%B2",
        "/api/v1/machines/numbers/versions?cursor=wrI=",
        "/api/v1/machines/numbers/versions/" + "9" * 5000,
        "/api/v1/machines/numbers/versions?cursor=" + "OTk5" * 40,
    ],
)
async def test_numbers_that_are_none_are_not_our_fault(client: Client, path: str) -> None:
    """These were 500s."""
    await client.deploy(COUNTER, name="numbers")
    assert (await client.http.get(path)).status_code in (400, 404)


async def test_pings_do_not_fill_the_memory(client: Client) -> None:
    """Pongs were written without a bound to a client that read nothing."""
    machine_id = await client.deploy(COUNTER, name="pings")
    reader, writer = await raw_socket(client, f"{machine_id}/s", receive_buffer=8192)
    await reader.readuntil(b"}")
    session = client.find(machine_id, "s")
    assert session is not None
    connection: Any = next(iter(client.hub.sessions.publisher.listeners(session)))
    ping = Frame(Opcode.PING, b"x" * 125).serialize(mask=True)
    for _ in range(200):
        writer.write(ping * 1000)
        await asyncio.sleep(0)
    # The hub answers until it has had enough of a client that does not read.
    await until(
        lambda: writer.transport.get_write_buffer_size() == 0 or connection._socket.disconnected
    )
    assert connection._socket.unsent_bytes < 1024 * 1024
    writer.transport.abort()


async def test_waiting_sees_states_that_pass_quickly(client: Client) -> None:
    """The condition was looked at only when a task woke up, several turns later."""
    source = (
        'import { createMachine } from "xstate"; export default createMachine({ initial: "cold", '
        'states: { cold: { on: { T: "hot" } }, hot: { tags: "hot", on: { T: "cold" } } } });'
    )
    machine_id = await client.deploy(source, name="passing")
    waiting = asyncio.create_task(
        client.http.post(
            f"/{machine_id}/s/wait", json={"condition": {"tag": "hot"}, "timeout_ms": 5000}
        )
    )
    await until(lambda: client.watchers(machine_id, "s") == 1)
    async with client.socket(f"{machine_id}/s") as peer:
        await peer.until("snapshot")
        for _ in range(200):
            await peer.send_raw({"type": "event", "event": {"type": "T"}})
        answer = (await waiting).json()
        assert (answer["seq"], answer["snapshot"]["value"]) == (2, "hot")


async def test_a_retry_of_a_conditional_event_gets_the_first_answer(client: Client) -> None:
    machine_id = await client.deploy(COUNTER, name="conditional")
    await client.http.get(f"/{machine_id}/s")
    headers = {"If-Match": '"1"', "Idempotency-Key": "k"}
    answers = [
        await client.http.post(f"/{machine_id}/s", json={"type": "increment"}, headers=headers)
        for _ in range(2)
    ]
    assert [(answer.status_code, answer.json()["seq"]) for answer in answers] == [
        (200, 2),
        (200, 2),
    ]


async def test_events_behind_the_last_one_are_told_that_it_is_over(client: Client) -> None:
    source = (
        'import { createMachine } from "xstate"; export default createMachine({ initial: "a", '
        'states: { a: { on: { END: "f" } }, f: { type: "final" } } });'
    )
    machine_id = await client.deploy(source, name="over")
    async with client.socket(f"{machine_id}/s") as peer:
        for name in ("END", "a", "b"):
            await peer.send_raw({"type": "event", "id": name, "event": {"type": name}})
        acks = [await peer.until("ack") for _ in range(3)]
    assert [ack.get("error", {}).get("code") for ack in acks] == [
        None,
        "session_finished",
        "session_finished",
    ]


async def test_images_leave_workers_with_their_last_session(client: Client) -> None:
    """Workers kept the image of every version that they had ever seen."""
    for number in range(3):
        machine_id = await client.deploy(COUNTER + "\n" * number, name="leaves")
        await client.http.get(f"/{machine_id}/s{number}")
        assert (await client.http.delete("/api/v1/machines/leaves")).status_code == 204
    assert all(
        not worker._images or min(worker._images.values()) > 0 for worker in client.hub.pool.workers
    )


async def test_session_ids_may_hold_newlines(client: Client) -> None:
    machine_id = await client.deploy(COUNTER, name="newline")
    assert (await client.http.get(f"/{machine_id}/a%0Ab")).status_code == 200


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("text/html", "text/html"),
        ("Text/HTML", "text/html"),
        ("application/json, text/html;q=0.1", "application/json"),
        ("text/html;q=0", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("*/*", "application/json"),
        ("", "application/json"),
        ("text/html;q=x", "application/json"),
    ],
)
async def test_accept_is_weighed(client: Client, accept: str, content_type: str) -> None:
    machine_id = await client.deploy(COUNTER, name="accept-weights")
    assert (
        (await client.http.get(f"/{machine_id}", headers={"Accept": accept}))
        .headers["content-type"]
        .startswith(content_type)
    )


async def test_the_answer_that_was_refused_is_blamed_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker was killed for an answer, but the session whose answer came next was blamed: the
    loop never ended.
    """
    import msgspec

    from sandbox.protocol.outbox import Outbox, decode_outbox

    def refuse_poison(result: bytes) -> Outbox:
        if b"poison" in result:
            raise msgspec.DecodeError("refused for the test")
        return decode_outbox(result)

    monkeypatch.setattr("machinehub.session.decide.answers.decode_outbox", refuse_poison)
    async with running_hub(tmp_path, workers=1) as client:
        machine_id = await client.deploy(machine('assign({ n: "poison" })'))
        async with (
            client.socket(f"{machine_id}/guilty") as guilty,
            client.socket(f"{machine_id}/innocent") as innocent,
        ):
            await innocent.event("OK")
            await guilty.send_raw({"type": "event", "id": "p", "event": {"type": "X"}})
            for number in range(5):
                await innocent.send_raw(
                    {"type": "event", "id": str(number), "event": {"type": "OK"}}
                )
            assert [(await innocent.until("ack"))["outcome"] for _ in range(5)] == ["accepted"] * 5
            assert (await guilty.until("ack"))["error"]["code"] == "worker_crashed"
            assert (await guilty.event("OK"))["outcome"] == "accepted"
        assert client.hub.pool.restarts == 3


async def test_a_conditional_event_wakes_a_session_that_falls_asleep(client: Client) -> None:
    """It waited for a checkpoint that told nobody that it was done."""
    machine_id = await client.deploy(COUNTER, name="sleepy")
    await client.http.get(f"/{machine_id}/s")
    client.hub.sessions.housekeeper.hibernate()
    answer = await asyncio.wait_for(
        client.http.post(
            f"/{machine_id}/s", json={"type": "increment"}, headers={"If-Match": '"1"'}
        ),
        5,
    )
    assert answer.json()["seq"] == 2


async def test_a_session_that_cannot_be_thawed_says_so_and_can_be_tried_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal was kept under the event's id, so that trying again gave the same 503 for
    ever.
    """
    from machinehub.errors import Unavailable

    machine_id = await client.deploy(COUNTER, name="thaw")
    await client.http.get(f"/{machine_id}/s")
    client.hub.sessions.housekeeper.hibernate()
    await client.put_to_sleep(machine_id, "s")

    async def no_image(_digest: str) -> bytes:
        raise Unavailable("unavailable", "the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(client.hub.catalog, "image", no_image)
        patch.setattr(client.hub.catalog, "at_hand", lambda _digest: None)
        refused = await client.http.post(
            f"/{machine_id}/s", json={"type": "increment"}, headers={"Idempotency-Key": "k"}
        )
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        new = await client.http.get(f"/{machine_id}/new")
        assert (new.status_code, new.json()["code"]) == (503, "unavailable")
    again = await client.http.post(
        f"/{machine_id}/s", json={"type": "increment"}, headers={"Idempotency-Key": "k"}
    )
    assert (again.status_code, again.json()["seq"]) == (200, 2)


async def test_waiting_with_an_event_sees_what_the_event_did(client: Client) -> None:
    """Another client's event could undo it before the wait began."""
    source = (
        'import { createMachine } from "xstate"; export default createMachine({ initial: "cold", '
        'states: { cold: { on: { T: "hot" } }, hot: { tags: "hot", after: { 0: "cold" } } } });'
    )
    machine_id = await client.deploy(source, name="brief")
    for _ in range(10):
        answer = await client.http.post(
            f"/{machine_id}/s/wait",
            json={"condition": {"tag": "hot"}, "event": {"type": "T"}, "timeout_ms": 2000},
        )
        assert answer.status_code == 200, answer.text
