"""Rows 13, 14, 16 and 23: what strangers send as data, and what comes of it."""

from __future__ import annotations

import asyncio
import gzip
import json
from urllib.parse import quote

import pytest

from tests.attacks.test_machines import OK, fresh, handling
from tests.support import COUNTER, Client

ECHO = handling("", context="{ n: 0, got: null }").replace(
    OK, f"{OK}, X: {{ actions: assign({{ got: ({{ event }}) => event.v ?? null }}) }}"
)


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
