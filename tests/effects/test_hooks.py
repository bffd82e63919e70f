"""Webhooks: believed by their signature alone, for the session that they name, and once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from machinehub.effects.hooks import Webhook, at_pointer, check_webhooks, verify
from machinehub.errors import BadRequest, HubError, Unauthorised
from tests.durable import hub_on
from tests.support import problem

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from tests.support import Client

KEY = "whsec_" + base64.b64encode(b"a secret of twenty-four b").decode()
SHOP = """
import { assign, setup } from "xstate";
export default setup({}).createMachine({
  context: { heard: [] },
  on: {
    "webhook.pay": { actions: assign({ heard: ({ context, event }) => [...context.heard, event] }) },
    "webhook.fail": { actions: () => { throw new Error("no"); } },
    END: ".end",
  },
  initial: "on", states: { on: {}, end: { type: "final" } },
});
"""
HOOKS = [
    {"name": "pay", "secret": "HOOK", "session": "/data/order"},
    {"name": "path", "secret": "HOOK", "event": "webhook.pay"},
    {"name": "fail", "secret": "HOOK", "session": "/data/order"},
    {"name": "nosecret", "secret": "MISSING"},
]
BODY = b'{"data": {"order": "42"}, "n": 1}'


def standard(
    body: bytes = BODY, *, id_: str = "msg_1", at: int | None = None, key: str = KEY
) -> dict[str, str]:
    sent = str(int(time.time()) if at is None else at)
    secret = base64.b64decode(key.removeprefix("whsec_"))
    signed = hmac.digest(secret, f"{id_}.{sent}.".encode() + body, "sha256")
    return {
        "webhook-id": id_,
        "webhook-timestamp": sent,
        "webhook-signature": "v1,other v1," + base64.b64encode(signed).decode(),
        "content-type": "application/json",
        "x-private": "not told",
    }


async def shop(client: Client, **more: Any) -> str:
    set_ = await client.http.put("/api/v1/projects/default/secrets/HOOK", json={"value": KEY})
    assert set_.status_code == 200, set_.text
    return await client.deploy(SHOP, name="shop", webhooks=HOOKS, **more)


async def deliver(
    client: Client, machine: str, path: str, headers: dict[str, str], body: bytes = BODY
) -> httpx.Response:
    return await client.http.post(f"/{machine}/-/hooks/{path}", content=body, headers=headers)


async def heard(client: Client, machine: str, session: str) -> list[Any]:
    answer = await client.http.get(f"/api/v1/machines/{machine}/sessions/{session}")
    found: list[Any] = answer.json()["snapshot"]["context"]["heard"] if answer.is_success else []
    return found


async def test_a_webhook_becomes_an_event(database_url: str, tmp_path: Path) -> None:
    """Of a private machine too: the signature is its right. The same delivery again counts for
    nothing.
    """
    async with hub_on(database_url, tmp_path) as client:
        machine = await shop(client, private=True)
        headers = standard()
        answer = await deliver(client, machine, "pay", headers)
        assert (answer.status_code, answer.json()) == (200, {"seq": 2})
        assert (await deliver(client, machine, "pay", headers)).json() == {"seq": 2}
        [event] = await heard(client, machine, "42")
        assert event["payload"] == json.loads(BODY)
        assert event["sender"] == {"id": "webhook.pay"}
        assert set(event["headers"]) == {"content-type", "webhook-id"}
        by_path = await deliver(client, machine, "path/a%2Fb", standard(id_="msg_2"))
        assert by_path.status_code == 200
        assert len(await heard(client, machine, "a%2Fb")) == 1


async def test_a_delivery_comes_again_later(tmp_path: Path) -> None:
    """With a new timestamp and signature, by another version of its sender, or with a little more
    in it: it is the same one by its id, and its sender need not come again.
    """
    async with hub_on(f"sqlite:///{tmp_path / 'hub.db'}", tmp_path) as client:
        machine = await shop(client)
        assert (await deliver(client, machine, "pay", standard())).json() == {"seq": 2}
        later = standard(at=int(time.time()) + 60) | {"user-agent": "another/2"}
        assert (await deliver(client, machine, "pay", later)).json() == {"seq": 2}
        more = BODY.replace(b'"n": 1', b'"n": 1, "tries": 2')
        answer = await deliver(client, machine, "pay", standard(more), more)
        assert (answer.status_code, answer.json()) == (200, {"seq": None})
        assert len(await heard(client, machine, "42")) == 1


async def test_nobody_else_sends_what_a_webhook_tells(database_url: str, tmp_path: Path) -> None:
    """Not over HTTP, nor over a socket; also while the rules of access keep everybody out."""
    access = [{"events": ["*"], "roles": []}]
    async with hub_on(database_url, tmp_path) as client:
        for name, rules in (("a", []), ("b", access)):
            machine = await shop(client, access=rules)
            told = await deliver(client, machine, f"path/{name}", standard())
            assert told.status_code == 200, told.text
            forged = {"type": "webhook.pay", "payload": {}, "sender": {"id": "webhook.pay"}}
            for session in (name, f"{name}2"):
                answer = await client.http.post(f"/{machine}/{session}", json=forged)
                problem(answer, 403, "forbidden")
            async with client.socket(f"{machine}/{name}") as socket:
                await socket.until("snapshot")
                ack = await socket.event(forged)
                assert (ack["outcome"], ack["error"]["code"]) == ("rejected", "forbidden")
            assert len(await heard(client, machine, name)) == 1


async def test_what_is_not_believed(tmp_path: Path) -> None:
    async with hub_on(f"sqlite:///{tmp_path / 'hub.db'}", tmp_path) as client:
        machine = await shop(client)
        now = int(time.time())
        other = "whsec_" + base64.b64encode(b"another").decode()
        for headers in (
            {},
            standard(key=other),
            standard() | {"webhook-id": "msg_2"},
            standard() | {"webhook-timestamp": str(now + 1)},
            standard(at=now - 301),
            standard(at=now + 400),
            standard() | {"webhook-timestamp": "soon"},
            standard() | {"webhook-timestamp": "9" * 50},
            standard() | {"webhook-signature": "v1,"},
            standard() | {"webhook-signature": " ".join(["v1,x"] * 100)},
        ):
            problem(await deliver(client, machine, "pay", headers), 401, "invalid_signature")
        changed = await deliver(client, machine, "pay", standard(), BODY.replace(b"1", b"2"))
        problem(changed, 401, "invalid_signature")
        assert await heard(client, machine, "42") == []


async def test_what_is_no_delivery(tmp_path: Path) -> None:
    async with hub_on(f"sqlite:///{tmp_path / 'hub.db'}", tmp_path) as client:
        machine = await shop(client)
        for body, status, code in (
            (b"no json", 400, "invalid_json"),
            (b"[" * 5000, 400, "event_too_deep"),
            (b"{}", 400, "no_session"),
            (b'{"data": {"order": {}}}', 400, "no_session"),
            (b'{"data": {"order": true}}', 400, "no_session"),
            (b'{"data": {"order": ""}}', 400, "invalid_session_id"),
            (b'{"data": {"order": "-x"}}', 400, "invalid_session_id"),
            (b"\xff", 400, "invalid_json"),
            (b'{"a": "' + b"x" * 70_000 + b'"}', 413, "body_too_large"),
        ):
            problem(await deliver(client, machine, "pay", standard(body), body), status, code)
        problem(await deliver(client, machine, "path", standard()), 400, "no_session")
        problem(await deliver(client, machine, "nobody", standard()), 404, "no_such_webhook")
        problem(await deliver(client, "Abcdef", "pay", standard()), 404, "no_such_machine")
        problem(await deliver(client, machine, "nosecret/x", standard()), 503, "no_such_secret")
        answer = await client.http.get(f"/{machine}/-/hooks/pay")
        problem(answer, 405, "method_not_allowed")
        problem(await client.http.get(f"/{machine}/-/other"), 404, "not_found")
        problem(await deliver(client, machine, "pay", standard(id_="")), 400, "invalid_webhook")
        problem(await deliver(client, machine, "fail", standard(id_="f")), 422, "machine_error")
        await client.http.post(f"/{machine}/42", json={"type": "END"})
        problem(await deliver(client, machine, "pay", standard(id_="l")), 409, "session_finished")


STRIPE = Webhook(name="s", secret="S", scheme="stripe")
GITHUB = Webhook(name="g", secret="S", scheme="github")


@pytest.mark.core
def test_stripes_scheme() -> None:
    body = b'{"id": "evt_1", "type": "charge.succeeded"}'
    signed = hmac.new(b"whsec_x", b"1000." + body, hashlib.sha256).hexdigest()
    headers = {"stripe-signature": f"t=1000,v1={'0' * 64},v1={signed},v0=x"}
    check = {"depth_max": 60}
    found = verify(STRIPE, headers, body, "whsec_x", now_ms=1_100_000, **check)
    assert found.id == "evt_1"
    for wrong, now_ms in (
        (headers, 2_000_000),
        ({"stripe-signature": f"t=1001,v1={signed}"}, 1_100_000),
        ({"stripe-signature": f"v1={signed}"}, 1_100_000),
        ({"stripe-signature": f"t=1000,v0={signed}"}, 1_100_000),
        ({}, 1_100_000),
    ):
        with pytest.raises(Unauthorised):
            verify(STRIPE, wrong, body, "whsec_x", now_ms=now_ms, **check)
    without = b'{"type": "x"}'
    signed = hmac.new(b"k", b"1000." + without, hashlib.sha256).hexdigest()
    with pytest.raises(BadRequest, match="no id"):
        verify(
            STRIPE,
            {"stripe-signature": f"t=1000,v1={signed}"},
            without,
            "k",
            now_ms=1_000_000,
            **check,
        )


@pytest.mark.core
def test_githubs_scheme() -> None:
    """With the example of GitHub's own documentation."""
    key, body = "It's a Secret to Everybody", b"Hello, World!"
    headers = {
        "x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        "x-github-delivery": "72d3162e",
    }
    with pytest.raises(BadRequest, match="not JSON"):  # the signature is right
        verify(GITHUB, headers, body, key, now_ms=0, depth_max=60)
    for wrong in ({}, headers | {"x-hub-signature-256": "sha256=" + "0" * 64}):
        with pytest.raises(Unauthorised):
            verify(GITHUB, wrong, body, key, now_ms=0, depth_max=60)


@pytest.mark.core
@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        ("/a", 1), ("/b/c", "x"), ("/l/1/z", 5), ("/l/9", None), ("/l/-1", None), ("/l/x", None), ("/m~0n", 6), ("/p~1q", 7),
        ("/a/b", None), ("/none", None), ("", {}),
    ],
)  # fmt: skip
def test_pointers(pointer: str, found: Any) -> None:
    document = {"a": 1, "b": {"c": "x"}, "l": [0, {"z": 5}], "m~n": 6, "p/q": 7}
    assert at_pointer(document, pointer) == (found if pointer else document)


@pytest.mark.core
@pytest.mark.parametrize(
    "wrong",
    [
        [Webhook(name="a", secret="S"), Webhook(name="a", secret="T")],
        [Webhook(name=f"a{n}", secret="S") for n in range(33)],
        [Webhook(name="a", secret="S", session="data")],
        [Webhook(name="a", secret="S", event="xstate.done.actor.x")],
        [Webhook(name="a", secret="S", event="presence.joined")],
    ],
)
def test_what_is_no_webhook(wrong: list[Webhook]) -> None:
    with pytest.raises(HubError):
        check_webhooks(wrong)
