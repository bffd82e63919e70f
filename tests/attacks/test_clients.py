"""Attacks by clients: bytes that are no event, frames that are none, pages of other sites, names
that lead elsewhere. Too much of everything: `test_door.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from typing import TYPE_CHECKING
from urllib.parse import quote

import hypothesis
import pytest
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from machinehub.edge import http_connection as transport
from machinehub.limits import Limits
from tests.attacks.test_machines import OK, fresh, handling
from tests.protocols.test_websocket import raw_socket
from tests.support import COUNTER, Client, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

ECHO = handling("", context="{ n: 0, got: null }").replace(
    OK, f"{OK}, X: {{ actions: assign({{ got: ({{ event }}) => event.v ?? null }}) }}"
)


async def ask(client: Client, request: bytes) -> bytes:
    """Bytes as they are, to the hub's port; all that it says until it hangs up.

    Client libraries mend what is to be tried here.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", client.hub.settings.port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 15)
    finally:
        writer.transport.abort()


# --- row 13: values -------------------------------------------------------------------------------

DATA: dict[str, bytes] = {
    "beyond floats": b"1e400",
    "minus beyond floats": b"-1e400",
    "minus zero": b"-0",
    "tiny": b"1e-400",
    "5 000 digits": b"9" * 5000,
    "beyond whole numbers": b"9007199254740993",
    "a NUL": rb'"\u0000"',
    "U+2028": rb'"\u2028"',
    "an emoji": rb'"\ud83d\ude00"',
    "duplicate keys": b'{"a":1,"a":2}',
    "__proto__": b'{"__proto__":{"polluted":1}}',
    "constructor": b'{"constructor":{"prototype":{"polluted":1}}}',
    "then": b'{"then":"x"}',
    "toJSON": b'{"toJSON":"x"}',
    "XState's mark": b'{"xstate$$type":1}',
    "an empty key": b'{"":{"":1}}',
    "keys that are numbers": b'{"1":1,"0":0,"-1":-1}',
    "a key of control characters": rb'{"\u001b[2J\r\n":1}',
    "10 000 keys": b"{" + b",".join(b'"%d":1' % n for n in range(7000)) + b"}",
    "an array of nulls": b"[" + b",".join([b"null"] * 9000) + b"]",
    "62 levels": b"[" * 62 + b"]" * 62,
}


@pytest.mark.parametrize("name", DATA)
async def test_values_are_plain_data(client: Client, name: str) -> None:
    """The same live, after sleep and in a replay; nothing of them reaches a prototype; the session
    takes its next event.
    """
    machine = await client.deploy(ECHO, name="echo")
    session = fresh()
    url = f"/{machine}/{session}"
    answer = await client.http.post(url, content=b'{"type":"X","v":' + DATA[name] + b"}")
    assert answer.status_code == 200, answer.text
    assert (await client.http.post(url, json={"type": "OK"})).status_code == 200
    live = (await client.http.get(url)).content
    assert b"polluted" not in live or name in ("__proto__", "constructor")
    await client.put_to_sleep(machine, session)
    assert (await client.http.get(url)).content == live
    assert (await client.http.post(f"/api/v1/machines/echo/sessions/{session}/replay")).json()[
        "verified"
    ] is True
    other = await client.http.post(f"/{machine}/{fresh()}", json={"type": "X", "v": {}})
    assert other.json()["snapshot"]["context"]["got"] == {}


REFUSED: dict[str, tuple[bytes, int, str]] = {
    "NaN": (b'{"type":"X","v":NaN}', 422, "invalid_event"),
    "Infinity": (b'{"type":"X","v":-Infinity}', 422, "invalid_event"),
    "a number with a leading zero": (b'{"type":"X","v":01}', 422, "invalid_event"),
    "a lone surrogate": (rb'{"type":"X","v":"\ud800"}', 422, "invalid_event"),
    "a lone surrogate in a key": (rb'{"type":"X","\udc00":1}', 422, "invalid_event"),
    "bad UTF-8": (b'{"type":"X","v":"\xff"}', 400, "invalid_utf8"),
    "overlong UTF-8": (b'{"type":"X","v":"\xc0\x80"}', 400, "invalid_utf8"),
    "UTF-8 of a surrogate": (b'{"type":"X","v":"\xed\xa0\x80"}', 400, "invalid_utf8"),
    "UTF-16": ('{"type":"X"}'.encode("utf-16"), 422, "invalid_event"),
    "a control character in a text": (b'{"type":"X","v":"\x01"}', 422, "invalid_event"),
    "100 000 levels": (
        b'{"type":"X","v":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        400,
        "event_too_deep",
    ),
    "64 levels": (b'{"type":"X","v":' + b"[" * 64 + b"]" * 64 + b"}", 400, "event_too_deep"),
    "a million keys": (
        b'{"type":"X","v":{' + b",".join(b'"%d":1' % n for n in range(1_000_000)) + b"}}",
        413,
        "event_too_large",
    ),
    "64 MB": (b'{"type":"X","v":"' + b"x" * 64_000_000 + b'"}', 413, "event_too_large"),
    "a comment": (b'{"type":"X"/**/}', 422, "invalid_event"),
    "two values": (b'{"type":"X"}{"type":"X"}', 422, "invalid_event"),
    "row 14: XState's own": (b'{"type":"xstate.done.actor.p","output":1}', 422, "invalid_event"),
    "row 14: an error of an actor": (b'{"type":"xstate.error.actor.p"}', 422, "invalid_event"),
    "row 14: a delay": (b'{"type":"xstate.after.1000.m.a"}', 422, "invalid_event"),
    "row 14: stopping": (b'{"type":"xstate.stop"}', 422, "invalid_event"),
    "row 14: beginning": (b'{"type":"xstate.init"}', 422, "invalid_event"),
    "row 14: presence": (b'{"type":"presence.joined","count":9}', 422, "invalid_event"),
    "row 14: a second type": (b'{"type":"X","type":"xstate.stop"}', 422, "invalid_event"),
    "row 14: a type in escapes": (rb'{"type":"\u0078state.stop"}', 422, "invalid_event"),
    "row 14: a key in escapes": (rb'{"type":"X","\u0074ype":"xstate.stop"}', 422, "invalid_event"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_before_a_machine_sees_it(client: Client, name: str) -> None:
    body, status, code = REFUSED[name]
    machine = await client.deploy(ECHO, name="echo-refusing")
    url = f"/{machine}/{fresh()}"
    before = (await client.http.get(url)).json()
    answer = await client.http.post(url, content=body)
    assert (answer.status_code, answer.json()["code"]) in (
        (status, code),
        (422, "invalid_event") if code == "invalid_utf8" else (status, code),
    ), answer.text
    after = (await client.http.get(url)).json()
    assert (after["seq"], after["snapshot"]) == (before["seq"], before["snapshot"])
    if len(body) < 60_000:
        async with client.socket(f"{machine}/{fresh()}") as peer:
            await peer.until("snapshot")
            try:
                await peer.send_raw(b'{"type":"event","event":'.decode() + body.decode() + "}")
            except UnicodeDecodeError:
                return
            assert (await peer.until("error"))["code"] in (code, "bad_frame")
            assert peer.seq == 1


async def test_the_sender_is_the_hubs_word(client: Client) -> None:
    source = handling("").replace(
        OK, f"{OK}, X: {{ actions: assign({{ n: ({{ event }}) => event.sender }}) }}"
    )
    machine = await client.deploy(source, name="sender")
    for forged in (
        '{"type":"X","sender":{"id":"admin","user":"root"}}',
        '{"type":"X","sender":null}',
        '{"type":"X","sender":1,"sender":{"id":"admin"}}',
        '{"type":"X","\\u0073ender":{"id":"admin"}}',
    ):
        got = (await client.http.post(f"/{machine}/{fresh()}", content=forged)).json()["snapshot"][
            "context"
        ]["n"]
        assert set(got) == {"id"}
        assert got["id"] != "admin"


async def test_a_bomb_stays_folded(client: Client) -> None:
    """Bodies are taken as they are: nothing is unpacked, so nothing grows."""
    machine = await client.deploy(ECHO, name="echo-bomb")
    bomb = gzip.compress(b" " * 50_000_000)
    answer = await client.http.post(
        f"/{machine}/{fresh()}", content=bomb[:60_000], headers={"Content-Encoding": "gzip"}
    )
    assert (answer.status_code, answer.json()["code"]) in (
        (422, "invalid_event"),
        (400, "invalid_utf8"),
    )
    answer = await client.http.post(
        "/api/v1/deployments",
        content=bomb,
        headers={"Content-Encoding": "gzip", "Content-Type": "application/json"},
    )
    assert answer.status_code in (400, 413)


# --- row 16: versions under one's feet ------------------------------------------------------------


async def test_two_deployments_of_one_name_are_two_versions(client: Client) -> None:
    sources = [COUNTER + f"\n// {number}" for number in range(4)]
    bodies = [{"name": "racing", "entry": "m.ts", "files": {"m.ts": source}} for source in sources]
    answers = await asyncio.gather(
        *(client.http.post("/api/v1/deployments", json=body) for body in bodies)
    )
    assert {answer.status_code for answer in answers} == {201}
    assert sorted(answer.json()["version"]["number"] for answer in answers) == [1, 2, 3, 4]
    for source, answer in zip(sources, answers, strict=True):
        number = answer.json()["version"]["number"]
        files = (await client.http.get(f"/api/v1/machines/racing/versions/{number}/files")).json()[
            "files"
        ]
        assert files == {"m.ts": source}


# --- row 18: names that lead elsewhere ------------------------------------------------------------

IDS = [
    "..",
    ".",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "%2e%2e",
    "a\0b",
    "\r\nSet-Cookie: x=1",
    "😀",
    "é",
    "\u202e",
    "x" * 128,
    "wait",
    "presence",
    "@2",
    "?",
    "#",
    "&",
    "'; DROP TABLE sessions; --",
    "<script>",
    "${7*7}",
    "*",
    ">",
    "a b",
    "+",
    "\u0301",
    "CON",
    "~root",
    "sessions.*",
]


@pytest.mark.parametrize("session", IDS)
async def test_odd_ids_are_ids(
    tmp_path_factory: pytest.TempPathFactory, client: Client, session: str
) -> None:
    """A session of that very name, as the API lists it, or a refusal; and no file beside the data
    folder's own.
    """
    machine = await client.deploy(COUNTER, name="odd-ids-raw")
    kept = sorted(path.name for path in client.hub.settings.data.iterdir())
    path = f"/{machine}/{quote(session, safe='')}"
    body = b'{"type":"increment"}'
    head, _, answer = (
        await ask(
            client,
            (
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: "
                f"close\r\nContent-Length: {len(body)}\r\n\r\n"
            ).encode()
            + body,
        )
    ).partition(b"\r\n\r\n")
    assert b"Set-Cookie" not in head
    assert head.startswith(b"HTTP/1.1 200"), answer
    listed = (await client.http.get("/api/v1/machines/odd-ids-raw/sessions?limit=500")).json()[
        "data"
    ]
    assert session in [found["id"] for found in listed]
    assert sorted(path.name for path in client.hub.settings.data.iterdir()) == kept


@pytest.mark.parametrize(
    ("path", "statuses"),
    [
        ("/../../etc/passwd", (404,)),
        ("/%2e%2e/%2e%2e/etc/passwd", (400, 404)),
        ("/assets/../../app.py", (404,)),
        ("/assets/%2e%2e%2fapp.py", (404,)),
        ("/assets/..%5capp.py", (404,)),
        ("/assets/%00", (404,)),
        ("//evil.example/x", (404,)),
        ("/" + "x" * 10_000, (404,)),
        ("/{machine}/" + "x" * 10_000, (400,)),
        ("/{machine}/%ff", (400,)),
        ("/{machine}/", (400,)),
        ("/{machine}@99999999999/s", (404,)),
        ("/{machine}@0/s", (404,)),
        ("/{machine}@-1/s", (404,)),
        ("/{machine}/s/../../x", (404,)),
        ("/api/v1/machines/..%2f..", (404,)),
        ("/api/v1/machines/%00", (400, 404)),
        ("/api/v1/machines/{machine}/versions/1e3", (404,)),
        ("/api/v1/machines/" + "y" * 20_000, (404, 414, 431)),
        ("/%", (400, 404)),
        ("/%zz", (400, 404)),
        ("/{machine}/s?at=%00", (400,)),
        ("/{machine}/s?input=%00", (200, 400)),
    ],
)
async def test_paths_that_lead_nowhere(
    client: Client, path: str, statuses: tuple[int, ...]
) -> None:
    machine = await client.deploy(COUNTER, name="paths")
    answer = await ask(
        client,
        f"GET {path.replace('{machine}', machine)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode(),
    )
    assert int(answer.split()[1]) in statuses, answer
    assert b"root:" not in answer


@pytest.mark.parametrize(
    "path",
    [
        "../../evil.ts",
        "/etc/evil.ts",
        "a/../../evil.ts",
        "a\\..\\..\\evil.ts",
        "C:\\evil.ts",
        "\0.ts",
        "a//b.ts",
        "./x/./../../../y.ts",
        "-",
        "~/x.ts",
        "x" * 5000 + ".ts",
        "\u202e.ts",
        "node_modules/../../x.ts",
        "a/\n.ts",
        "",
    ],
)
async def test_uploaded_paths_stay_in_the_upload(client: Client, path: str) -> None:
    for files in ({"m.ts": COUNTER, path: "export const x = 1"}, {path: COUNTER}):
        entry = next(iter(files))
        response = await client.http.post(
            "/api/v1/deployments", json={"name": "paths-in", "entry": entry, "files": files}
        )
        assert response.status_code in (200, 201, 400, 413, 422), response.text
    await client.deploy(COUNTER, name="paths-in")


# --- row 19: WebSocket ----------------------------------------------------------------------------


def _control(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    size = (
        bytes((0x80 | len(payload),))
        if len(payload) < 126
        else bytes((0xFE,)) + len(payload).to_bytes(2, "big")
    )
    return bytes(((0x80 if fin else 0) | opcode,)) + size + bytes(4) + payload


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (Frame(Opcode.TEXT, b'{"type":"ping"}').serialize(mask=False), 1002),
        (Frame(Opcode.TEXT, b'{"type":"\xff\xfe"}').serialize(mask=True), 1007),
        (b"\x81\xff" + (1 << 40).to_bytes(8, "big") + b"1234", 1009),
        (
            Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True)
            + Frame(Opcode.CONT, b"", fin=False).serialize(mask=True) * 3000,
            1008,
        ),
        (_control(9, b"x" * 126), 1002),
        (_control(9, b"x", fin=False), 1002),
        (_control(8, b"\x00"), 1002),
        (_control(8, (999).to_bytes(2, "big")), 1002),
        (_control(8, (1005).to_bytes(2, "big")), 1002),
        (_control(8, (1000).to_bytes(2, "big") + b"\xff"), 1007),
        (_control(0, b"x"), 1002),
        (_control(3, b""), 1002),
        (_control(11, b""), 1002),
        (bytes((0xC1, 0x80)) + bytes(4), 1002),
    ],
    ids=[
        "unmasked",
        "no UTF-8",
        "a terabyte announced",
        "fragments",
        "long ping",
        "ping in parts",
        "half a close code",
        "a code that is none",
        "a code nobody sends",
        "a reason that is no text",
        "a part of nothing",
        "opcode 3",
        "opcode 11",
        "compressed",
    ],
)
async def test_frames_that_are_none_end_the_connection(
    client: Client, data: bytes, code: int
) -> None:
    machine = await client.deploy(COUNTER, name="raw-frames")
    reader, writer = await raw_socket(client, f"{machine}/s")
    writer.write(data)
    received = await asyncio.wait_for(reader.readuntil(code.to_bytes(2, "big")), 10)
    assert received[-4] == 0x88
    writer.transport.abort()
    async with client.socket(f"{machine}/s") as peer:
        assert (await peer.event("increment"))["outcome"] == "accepted"


def made_up_frames() -> list[str]:
    """What hypothesis makes of frames: right ones, wrong ones, and texts that are none."""
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
        max_leaves=8,
    )
    events = st.dictionaries(st.text(max_size=8), values, max_size=3).flatmap(
        lambda rest: st.fixed_dictionaries(
            {
                "type": st.sampled_from(["increment", "OK", "xstate.stop", "presence.left", ""])
                | st.text(max_size=10)
            }
        ).map(lambda head: rest | head)
    )
    frames = st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["event", "ping", "presence", "snapshot", "ack"]) | values,
            "id": st.text(max_size=300) | values,
            "event": events | values,
            "metadata": values,
            "seq": values,
        },
    )
    texts = st.text(max_size=60) | (values | frames).map(json.dumps)
    found: list[str] = []

    @hypothesis.settings(max_examples=400, database=None, derandomize=True, deadline=None)
    @hypothesis.given(texts | frames.map(json.dumps))
    def make(text: str) -> None:
        with contextlib.suppress(UnicodeEncodeError):
            found.append(text.encode().decode())

    make()
    return found


async def test_every_frame_has_its_answer(client: Client) -> None:
    """An error, an ack, a pong, or the effect of an event without an id: no frame is lost, and none
    ends the connection or the session.
    """
    machine = await client.deploy(COUNTER, name="made-up-frames")
    sent = [*made_up_frames(), '{"type":"event","id":"the-last","event":{"type":"increment"}}']
    async with client.socket(f"{machine}/s") as peer:
        await peer.until("snapshot")
        for frame in sent:
            await peer.send_raw(frame)
        while (ack := await peer.until("ack"))["id"] != "the-last":
            pass
        assert ack["outcome"] == "accepted"
        assert {frame["type"] for frame in peer.seen} <= {
            "snapshot",
            "update",
            "ack",
            "error",
            "pong",
            "presence",
        }
        answers = sum(frame["type"] in ("ack", "error", "pong") for frame in peer.seen)
        assert answers > len(sent) // 2
        codes = {frame["code"] for frame in peer.seen if frame["type"] == "error"} | {
            frame["error"]["code"] for frame in peer.seen if "error" in frame
        }
        assert codes <= {
            "bad_frame",
            "invalid_event",
            "invalid_metadata",
            "event_too_deep",
            "invalid_utf8",
        }
    journal = (
        await client.http.get(f"/api/v1/machines/{machine}/sessions/s/journal?limit=500")
    ).json()["data"]
    assert all(
        not entry["event"]["type"].startswith(("xstate.", "presence."))
        for entry in journal
        if entry["kind"] == "event"
    )


async def test_nothing_is_compressed(client: Client) -> None:
    """A client that offers to is told no: there is no bomb to unfold."""
    machine = await client.deploy(COUNTER, name="deflate")
    async with client.socket(f"{machine}/s", compression="deflate") as peer:
        assert peer.connection.protocol.extensions == []


async def test_a_slow_handshake_is_not_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "HEAD_S", 0.3)
    answer = await ask(client, b"GET /x/y HTTP/1.1\r\nHost: localhost\r\nUpgrade: webs")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer


async def test_a_body_that_never_ends_is_not_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("machinehub.edge.requests.BODY_S", 0.3)
    machine = await client.deploy(COUNTER, name="slow-body")
    answer = await ask(
        client,
        f"POST /{machine}/s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 100\r\n\r\n{{".encode(),
    )
    assert answer.startswith(b"HTTP/1.1 408")


UPGRADE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: "
    b"AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
)


@pytest.mark.parametrize(
    ("request_bytes", "answers"),
    [
        (
            b"GET /{m} HTTP/1.1\r\nHost: localhost\r\n\r\nGET /{m}/s HTTP/1.1\r\nHost: "
            b"localhost\r\n" + UPGRADE + b"\r\n",
            1,
        ),
        (
            b"POST /{m}/s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
            + UPGRADE
            + b"\r\n{}",
            1,
        ),
        (
            b"GET /{m}/s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            + UPGRADE
            + b"\r\n0\r\n\r\n",
            1,
        ),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 14_000, 10),
    ],
    ids=[
        "behind another request",
        "with a body",
        "with a body in chunks",
        "fourteen thousand at once",
    ],
)
async def test_what_a_connection_may_not_begin_meanwhile(
    client: Client, request_bytes: bytes, answers: int
) -> None:
    """An upgrade took a connection away from an answer that nobody then ended; one with a body
    waited for ever; requests queued without bound.
    """
    machine = await client.deploy(COUNTER, name="meanwhile")
    answer = b""
    with contextlib.suppress(ConnectionResetError):  # who sends on is hung up on
        answer = await ask(client, request_bytes.replace(b"{m}", machine.encode()))
    assert answer.count(b"HTTP/1.1") <= answers
    assert b"101" not in answer.split(b"\r\n", 1)[0]
    assert client.connections(machine, "s") == 0


async def test_nothing_stands_within_an_answer(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start of a next request, or an empty line, brought a 408 into the stream under way."""
    monkeypatch.setattr(transport, "HEAD_S", 0.2)
    machine = await client.deploy(COUNTER, name="within")
    reader, writer = await asyncio.open_connection("127.0.0.1", client.hub.settings.port)
    writer.write(
        (
            f"GET /{machine}/s HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        ).encode()
        + b"\r\nG"
    )
    await reader.readuntil(b"snapshot")
    # Longer than a head may take: another connection, begun now, has been given up by then.
    later, also = await asyncio.open_connection("127.0.0.1", client.hub.settings.port)
    also.write(b"G")
    await later.read()
    also.close()
    await client.http.post(f"/{machine}/s", json={"type": "increment"})
    assert b"408" not in await reader.readuntil(b'"count":1')
    writer.transport.abort()
    body = b'{"condition":{"tag":"never"},"timeout_ms":600}'
    answer = await ask(
        client,
        (
            f"POST /{machine}/s/wait HTTP/1.1\r\nHost: localhost\r\nConnection: "
            f"close\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        + body
        + b"\r\n",
    )
    assert b"wait_timeout" in answer


async def test_who_stops_waiting_gives_up_the_place(tmp_path: Path) -> None:
    async with running_hub(tmp_path, limits=Limits(connections_per_session=3)) as client:
        machine = await client.deploy(COUNTER)
        body = b'{"condition":{"tag":"never"},"timeout_ms":60000}'
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", client.hub.settings.port)
            writer.write(
                (
                    f"POST /{machine}/s/wait HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
                    f"{len(body)}\r\n\r\n"
                ).encode()
                + body
            )
            await until(lambda: client.watchers(machine, "s") == 1)
            writer.transport.abort()
            await until(lambda: client.watchers(machine, "s") == 0)
        answer = await client.http.post(
            f"/{machine}/s/wait", json={"condition": {"matches": "active"}, "timeout_ms": 1000}
        )
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("chunked", [True, False])
async def test_an_answer_reaches_those_who_still_send(
    client: Client, monkeypatch: pytest.MonkeyPatch, *, chunked: bool
) -> None:
    """They were hung up on in the middle of their body, so that the 413 was lost.

    What comes too late is thrown away, for a while.
    """
    monkeypatch.setattr(transport, "LINGER_S", 1.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", client.hub.settings.port)
    length = "Transfer-Encoding: chunked" if chunked else "Content-Length: 1000000000"
    writer.write(
        f"POST /api/v1/deployments HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n".encode()
    )
    block = b"x" * 65536
    block = b"10000\r\n" + block + b"\r\n" if chunked else block

    async def send_on() -> None:
        while True:
            writer.write(block)
            await writer.drain()

    sending = asyncio.create_task(send_on())
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).startswith(b"HTTP/1.1 413")
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(sending, 10)
    writer.transport.abort()


# --- row 20: pages of other sites, and requests that are two --------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8787",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "[::1].evil.example",
        "",
        "169.254.169.254",
        "0x7f000001",
    ],
)
async def test_an_open_hub_has_no_other_name(client: Client, host: str) -> None:
    """So a name that somebody's server points here reaches nothing (DNS rebinding)."""
    machine = await client.deploy(COUNTER, name="rebinding")
    for path in ("/api/v1/machines", f"/{machine}/s", "/"):
        assert (
            await ask(
                client, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
        ).split()[1] == b"403"


@pytest.mark.parametrize(
    "request_bytes",
    [
        (
            b"POST /{machine}/s HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
            b"4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: "
            b"localhost\r\n\r\n"
        ),
        (
            b"POST /{machine}/s HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
            b"4\r\nContent-Length: "
            b"5\r\n\r\n{}{}"
        ),
        (
            b"POST /{machine}/s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: "
            b"xchunked\r\n\r\n0\r\n\r\n"
        ),
        (
            b"POST /{machine}/s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : "
            b"chunked\r\n\r\n0\r\n\r\n"
        ),
        b"POST /{machine}/s HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        (
            b"POST /{machine}/s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: "
            b"chunked\r\n\r\nfffffffffffffffff\r\n"
        ),
        b"GET /{machine}/s HTTP/1.1\r\nHost: localhost\r\n folded: x\r\n\r\n",
        b"GET /{machine}/s HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /{machine}/s HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n",
    ],
    ids=[
        "both lengths",
        "two lengths",
        "an unknown coding",
        "a space before the colon",
        "a negative length",
        "an endless chunk",
        "a folded header",
        "a version",
        "TLS",
        "a NUL",
    ],
)
async def test_a_request_is_one_request(client: Client, request_bytes: bytes) -> None:
    """What could be read in two ways is refused and ends the connection: nothing of it is a second
    request.
    """
    machine = await client.deploy(COUNTER, name="smuggling")
    answer = await ask(client, request_bytes.replace(b"{machine}", machine.encode()))
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert b"bad_request" in answer
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("X: " + "y" * 131_072, 431),
        ("\r\n".join(f"X{n}: y" for n in range(200)), 431),
        ("X: " + "y" * 20_000, 200),
    ],
)
async def test_large_heads_are_refused(client: Client, head: str, status: int) -> None:
    answer = await ask(
        client,
        f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{head}\r\n\r\n".encode(),
    )
    assert answer.startswith(f"HTTP/1.1 {status}".encode())
    assert status == 200 or b"headers_too_large" in answer


async def test_an_origin_that_is_none(client: Client) -> None:
    """These were 500s."""
    assert (
        await client.http.get("/api/v1/machines", headers={"Origin": "http://["})
    ).status_code == 403
    assert (await client.http.get("/api/v1/machines/none/%73essions/a")).status_code == 404


async def test_pages_of_named_sites_only(tmp_path: Path) -> None:
    async with running_hub(tmp_path, token="t", workers=1, origins="https://app.example") as client:
        machine = await client.deploy(COUNTER)
        for origin, status in (
            ("https://app.example", 200),
            ("https://evil.example", 403),
            ("null", 403),
        ):
            assert (
                await client.http.get(f"/{machine}/s", headers={"Origin": origin})
            ).status_code == status
        async with client.socket(f"{machine}/s", origin="https://app.example") as peer:
            await peer.until("snapshot")
        with pytest.raises(Exception, match="403"):
            async with client.socket(f"{machine}/s", origin="https://evil.example"):
                pass


# --- row 23: text is text -------------------------------------------------------------------------

TEXTS = [
    "'; DROP TABLE machines; --",
    '" OR 1=1 --',
    "<img src=x onerror=alert(1)>",
    "\u001b[2J\u001b]0;owned\u0007",
    "line\r\nSet-Cookie: a=b",
    "\u202egnp.exe",
    "%s%n%x",
    "{{7*7}}",
    "\\",
    "\u0001",
    "${jndi:ldap://x}",
]


@pytest.mark.parametrize("text", TEXTS)
async def test_the_same_text_comes_back(client: Client, text: str) -> None:
    """Through every field that a stranger fills, into the database and out again."""
    source = handling(
        f"description: {json.dumps(text)}, id: {json.dumps(text)}",
        context=f"{{ n: 0, text: {json.dumps(text)} }}",
    )
    body = {
        "name": "texts",
        "entry": "m.ts",
        "files": {"m.ts": source, "other.txt.ts": f"// {text}"},
        "message": text,
    }
    response = await client.http.post("/api/v1/deployments", json=body)
    assert response.status_code in (200, 201), response.text
    machine = response.json()["machine"]["id"]
    number = response.json()["version"]["number"]
    version = (await client.http.get(f"/api/v1/machines/texts/versions/{number}")).json()
    assert version["message"] == text
    shown = (await client.http.get(f"/{machine}", headers={"Accept": "application/json"})).json()[
        "definition"
    ]
    assert (shown["id"], shown["description"]) == (text, text)
    session = quote(text, safe="")
    answer = await client.http.post(
        f"/{machine}/{session}",
        json={"type": text, "v": text},
        headers={"Idempotency-Key": text.encode().decode("latin-1")} if text.isprintable() else {},
    )
    assert answer.json()["snapshot"]["context"]["text"] == text
    journal = (await client.http.get(f"/api/v1/machines/texts/sessions/{session}/journal")).json()[
        "data"
    ]
    assert journal[-1]["event"] == {"type": text, "v": text}
    page = await client.http.get(f"/{machine}/{session}", headers={"Accept": "text/html"})
    assert text not in page.text, "nothing of a machine is in its page's HTML"
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert (await client.http.get("/api/v1/machines/" + quote(text, safe=""))).status_code in (
        400,
        404,
    )
