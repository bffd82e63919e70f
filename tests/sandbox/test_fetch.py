"""`fetch` in a machine: a request is in the outbox, and its answer is an input."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sandbox.instance import Fault
from sandbox.protocol.effects import Answer, Request, encode_answer, read_request, refusal, spelled
from sandbox.protocol.ids import EffectId
from sandbox.protocol.inputs import answer_input
from sandbox.protocol.limits import GuestLimits
from sandbox.protocol.outbox import Outbox, decode_outbox
from tests.sandbox.sandboxes import NOW_MS, Sandbox

OUT = GuestLimits(egress=1)
SHOP = """
const { assign, createMachine, fromPromise } = require("xstate");
const pay = fromPromise(async ({ input, signal }) => {
  const answer = await fetch("https://pay.example/charges", {
    method: "POST",
    headers: { Authorization: "Bearer " + secret("KEY"), "X-Two": "b" },
    body: JSON.stringify(input),
    signal,
  });
  if (!answer.ok) throw new Error("the shop says " + answer.status);
  return (await answer.json()).id;
});
module.exports = { default: createMachine({
  context: { paid: null, why: null },
  initial: "open",
  states: {
    open: { on: { pay: "paying" } },
    paying: {
      invoke: {
        src: pay, input: { cents: 100 },
        onDone: { target: "done", actions: assign({ paid: ({ event }) => event.output }) },
        onError: { target: "open", actions: assign({ why: ({ event }) => event.error.message }) },
      },
      on: { stop: "open" },
      after: { 5000: "open" },
    },
    done: {},
  },
}) };
"""


class Shop:
    """A session of a machine, and what it asked for last."""

    def __init__(self, sandbox: Sandbox, script: str, limits: GuestLimits = OUT) -> None:
        self.sandbox = sandbox
        self.image = sandbox.image_of(script, limits=limits)
        self.machine = sandbox.started(self.image)

    def do(self, data: bytes) -> Outbox:
        outbox = self.machine.apply(data, NOW_MS, cpu_s=1)
        assert isinstance(outbox, bytes), outbox
        return decode_outbox(outbox)

    def send(self, type_: str) -> Outbox:
        return self.do(b'[1,7,{"type":"%b"},{"id":"c"}]' % type_.encode())

    def answer(self, effect: int, answer: Answer) -> Outbox:
        return self.do(answer_input(9, EffectId(effect), encode_answer(answer)))


def asked(outbox: Outbox) -> list[tuple[int, Request]]:
    return [(effect, read_request(bytes(raw))) for effect, raw in outbox.requests]


def context(outbox: Outbox) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(outbox.snapshot)["context"]
    return found


def test_a_request_is_data_and_its_answer_an_input(sandbox: Sandbox) -> None:
    shop = Shop(sandbox, SHOP)
    paying = shop.send("pay")
    [(effect, request)] = asked(paying)
    assert request == Request(
        "POST",
        "https://pay.example/charges",
        [
            ("authorization", "Bearer {{secret:KEY}}"),
            ("x-two", "b"),
            ("content-type", "text/plain;charset=UTF-8"),
        ],
        text='{"cents":100}',
    )
    # The promise waits in the frozen memory: another process goes on with it.
    shop.machine = sandbox.thaw(shop.image, shop.machine.checkpoint())
    done = shop.answer(effect, Answer(200, "OK", request.url, text='{"id":"ch_1"}'))
    assert context(done) == {"paid": "ch_1", "why": None}
    assert done.cause.startswith("xstate.done.actor")
    again = shop.answer(effect, Answer(200, "OK", request.url, text='{"id":"ch_2"}'))
    assert bytes(again.snapshot) == b"null"  # nobody waits for it any more


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(402, "Payment Required", "u", text="no"), "the shop says 402"),
        (refusal("egress_refused", "not let out"), "not let out"),
    ],
)
def test_a_request_that_comes_to_nothing(sandbox: Sandbox, answer: Answer, why: str) -> None:
    shop = Shop(sandbox, SHOP)
    [(effect, _)] = asked(shop.send("pay"))
    assert context(shop.answer(effect, answer))["why"] == why


def test_who_leaves_the_state_takes_the_request_back(sandbox: Sandbox) -> None:
    shop = Shop(sandbox, SHOP)
    [(effect, _)] = asked(shop.send("pay"))
    stopped = shop.send("stop")
    assert stopped.withdrawn == [effect]
    late = shop.answer(effect, Answer(200, "OK", "u", text='{"id":"ch_1"}'))
    assert (bytes(late.snapshot), late.requests) == (b"null", [])


def test_replayed_it_asks_the_same_and_nobody_is_asked(sandbox: Sandbox) -> None:
    shop = Shop(sandbox, SHOP)
    pay = b'[1,7,{"type":"pay"},{"id":"c"}]'
    paid = answer_input(9, EffectId(1), encode_answer(Answer(200, "OK", "u", text='{"id":"x"}')))
    inputs = [(b"[0,5]", NOW_MS), (pay, NOW_MS), (paid, NOW_MS + 5)]
    for data, now_ms in inputs[1:]:
        assert isinstance(shop.machine.apply(data, now_ms, cpu_s=1), bytes)
    other = sandbox.thaw(shop.image)
    other.replay(inputs)
    assert other.memory() == shop.machine.memory()


def run(sandbox: Sandbox, code: str, limits: GuestLimits = OUT) -> tuple[Shop, Outbox]:
    """A machine whose event `go` runs async code; what that comes to is `context.got`."""
    script = """
    const { assign, createMachine, fromPromise } = require("xstate");
    module.exports = { default: createMachine({
      context: { got: null }, initial: "a",
      states: { a: { on: { go: "b" } }, b: { invoke: {
        src: fromPromise(async () => { %s }),
        onDone: { actions: assign({ got: ({ event }) => event.output }) },
        onError: { actions: assign({ got: ({ event }) => "threw " + event.error.name + ": " + event.error.message }) },
      } } },
    }) };"""
    shop = Shop(sandbox, script % code, limits)
    return shop, shop.send("go")


@pytest.mark.parametrize(
    ("code", "got"),
    [
        ("await fetch('ftp://a.example/');", "fetch knows https:, http: and hub:, not ftp:"),
        ("await fetch('https://u:p@a.example/');", "use a header"),
        ("await fetch('nonsense');", "threw TypeError"),
        ("await fetch('https://a.example', {method: 'TRACE'});", "no method"),
        ("await fetch('https://a.example', {method: 'a b'});", "no method"),
        ("await fetch('https://a.example', {body: 'x'});", "has no body"),
        ("await fetch('https://a.example', {headers: {'a b': 'c'}});", "cannot be called"),
        ("await fetch('https://a.example', {headers: {a: 'b\\r\\nc'}});", "none may have"),
        ("await fetch('https://a.example', {redirect: 'x'});", "redirect is one of"),
        ("await fetch('https://a.example', {signal: AbortSignal.abort()});", "AbortError"),
        ("return secret('a b');", "letters, digits and underscores"),
        ("return secret('A');", "{{secret:A}}"),
        ("return await new Response('{\"a\":1}').json();", {"a": 1}),
        ("return [...new Headers([['b','1'],['A','2'],['b','3']])];", [["a", "2"], ["b", "1, 3"]]),
        ("const r = new Response('x'); await r.text(); await r.text();", "read already"),
        ("return [...new Uint8Array(await new Response('é').arrayBuffer())];", [195, 169]),
        ("const r = Response.json({a: 1}, {status: 201}); return [r.status, r.ok, r.headers.get('Content-Type')];", [201, True, "application/json"]),
        ("const f = new FormData(); f.append('a', 1); f.set('b', 'x'); return [...f];", [["a", "1"], ["b", "x"]]),
    ],
)  # fmt: skip
def test_what_is_not_asked_of_anybody(sandbox: Sandbox, code: str, got: Any) -> None:
    _, outbox = run(sandbox, code)
    assert asked(outbox) == []
    said = context(outbox)["got"]
    assert got in said if isinstance(got, str) else said == got


def test_without_egress_nothing_is_asked_but_of_the_hub(sandbox: Sandbox) -> None:
    usual = GuestLimits()
    _, outbox = run(sandbox, "await fetch('https://a.example/')", usual)
    assert "not allowed by this machine's egress rules" in context(outbox)["got"]
    _, outbox = run(sandbox, "await fetch('hub:/orders/42')", usual)
    assert [request.url for _, request in asked(outbox)] == ["hub:/orders/42"]


@pytest.mark.parametrize(
    ("body", "type_", "sent"),
    [
        ("new URLSearchParams({a: 'b c'})", "application/x-www-form-urlencoded;charset=UTF-8", b"a=b+c"),
        ("new Uint8Array([0, 255, 1])", None, b"\x00\xff\x01"),
        ("new Uint8Array([0, 255, 1]).buffer", None, b"\x00\xff\x01"),
        ("'é'", "text/plain;charset=UTF-8", "é".encode()),
        ("(() => { const f = new FormData(); f.append('a\"', 'b'); return f; })()", "multipart/form-data", b'name="a%22"\r\n\r\nb\r\n--'),
    ],
)  # fmt: skip
def test_bodies(sandbox: Sandbox, body: str, type_: str | None, sent: bytes) -> None:
    _, outbox = run(sandbox, f"await fetch('https://a.example/', {{method: 'PUT', body: {body}}})")
    [(_, request)] = asked(outbox)
    assert dict(request.headers).get("content-type", "").startswith(type_ or "")
    assert sent in request.body


@pytest.mark.parametrize("body", [b"", b"plain", "é€".encode(), bytes(range(256)), b"\x00" * 900])
def test_bodies_of_answers_arrive_as_they_were(sandbox: Sandbox, body: bytes) -> None:
    code = "const r = await fetch('https://a.example/'); return [...new Uint8Array(await r.arrayBuffer())];"
    shop, outbox = run(sandbox, code)
    [(effect, request)] = asked(outbox)
    answered = shop.answer(effect, Answer(200, "OK", request.url, **spelled(body)))  # type: ignore[arg-type]
    assert bytes(context(answered)["got"]) == body


@pytest.mark.parametrize(
    "body",
    [
        b"\xff" * 262_144,
        b"\x01" * 262_144,
        b'"' * 262_144,
        b"caf\xe9 " * 40_000,
        "é€😀".encode() * 20_000,
        b"\x01" * 65_530 + "é😀".encode() * 10,
        b"\xf0\x9f\x98",
    ],
)
def test_the_longest_answer_is_read_as_text(sandbox: Sandbox, body: bytes) -> None:
    """By a machine with the limits that hubs have, whatever is in it."""
    code = """const r = await fetch('https://a.example/'); const text = await r.text();
      let hash = 0; for (let i = 0; i < text.length; i += 997) hash = (hash * 31 + text.charCodeAt(i)) | 0;
      return [text.length, hash];"""
    shop, outbox = run(sandbox, code)
    [(effect, request)] = asked(outbox)
    answered = shop.answer(effect, Answer(200, "OK", request.url, **spelled(body)))  # type: ignore[arg-type]
    units = body.decode(errors="replace").encode("utf-16-le")
    hash_ = 0
    for at in range(0, len(units), 997 * 2):
        hash_ = (hash_ * 31 + units[at] + 256 * units[at + 1]) & 0xFFFFFFFF
    signed = hash_ - 2**32 if hash_ >= 2**31 else hash_
    assert context(answered)["got"] == [len(units) // 2, signed]


def test_responses_say_what_was_answered(sandbox: Sandbox) -> None:
    code = """const r = await fetch('https://a.example/'); const two = r.clone();
      return [r.status, r.statusText, r.url, r.redirected, r.type, [...r.headers], await two.text(), r.bodyUsed, two.bodyUsed];"""
    shop, outbox = run(sandbox, code)
    [(effect, _)] = asked(outbox)
    headers = [("Content-Type", "text/plain"), ("Set-Cookie", "a=1"), ("set-cookie", "b=2")]
    answer = Answer(404, "Not Found", "https://b.example/", True, headers, text="no")
    assert context(shop.answer(effect, answer))["got"] == [
        404,
        "Not Found",
        "https://b.example/",
        True,
        "basic",
        [["content-type", "text/plain"], ["set-cookie", "a=1"], ["set-cookie", "b=2"]],
        "no",
        False,
        True,
    ]


def test_a_signal_that_times_out_is_a_timer_of_the_hub(sandbox: Sandbox) -> None:
    code = "await fetch('https://a.example/', { signal: AbortSignal.timeout(50) });"
    shop, outbox = run(sandbox, code)
    [(timer, due_ms)] = outbox.timers_set
    assert due_ms == NOW_MS + 50
    fired = shop.do(b"[2,1,%d]" % timer)
    assert fired.withdrawn == [1]
    assert context(fired)["got"] == "threw TimeoutError: it took too long"


@pytest.mark.parametrize(
    ("code", "limits"),
    [
        ("for (let i = 0; i < 4; i++) fetch('https://a.example/');", GuestLimits(egress=1, effects=3)),
        ("fetch('https://a.example/', { method: 'POST', body: 'x'.repeat(2000) });", GuestLimits(egress=1, effect_bytes=1000)),
    ],
)  # fmt: skip
def test_more_than_a_session_may_ask_undoes_the_turn(
    sandbox: Sandbox, code: str, limits: GuestLimits
) -> None:
    script = f"""const {{ createMachine }} = require("xstate");
    module.exports = {{ default: createMachine({{ on: {{ go: {{ actions: () => {{ {code} }} }} }} }}) }};"""
    shop = Shop(sandbox, script, limits)
    fault = shop.machine.apply(b'[1,7,{"type":"go"},{"id":"c"}]', NOW_MS, cpu_s=1)
    assert isinstance(fault, Fault)
    assert fault.code == "effects_exceeded"


def test_a_file_that_fetches_while_it_is_loaded(sandbox: Sandbox) -> None:
    script = """const { createMachine } = require("xstate"); fetch("https://a.example/");
    module.exports = { default: createMachine({}) };"""
    machine = sandbox.thaw(sandbox.image_of(script, limits=OUT))
    outbox = machine.apply(b"[0,5]", NOW_MS, cpu_s=1)
    assert isinstance(outbox, bytes)
    assert decode_outbox(outbox).requests == []


def test_a_machine_that_spoils_json_cannot_forge_an_outbox(sandbox: Sandbox) -> None:
    code = """JSON.stringify = () => '0],[9,9],[[1,1]]'; Array.prototype.toJSON = () => "x";
      String.prototype.toJSON = () => "y"; await fetch('https://a.example/', {headers: {a: 'b'}});"""
    _, outbox = run(sandbox, code)
    [(effect, raw)] = outbox.requests
    assert effect == 1
    assert isinstance(msgspec.json.decode(raw), dict)


@pytest.mark.parametrize(
    "source",
    [
        "fromCallback(({ sendBack }) => { fetch('https://a.example/').then((r) => r.text()).then((text) => sendBack({ type: 'GOT', text })); })",
        "fromObservable(() => ({ subscribe: (observer) => { fetch('https://a.example/').then((r) => r.text()).then((text) => { observer.next(text); observer.complete(); }); return { unsubscribe() {} }; } }))",
        "fromPromise(() => fetch('https://a.example/').then((r) => r.text()))",
    ],
)  # fmt: skip
def test_every_kind_of_actor_may_ask(sandbox: Sandbox, source: str) -> None:
    script = f"""
    const {{ assign, createMachine, fromCallback, fromObservable, fromPromise }} = require("xstate");
    const keep = assign({{ got: ({{ context, event }}) => context.got ?? event.text ?? event.output ?? event.snapshot?.context ?? null }});
    module.exports = {{ default: createMachine({{
      context: {{ got: null }}, initial: "a", on: {{ GOT: {{ actions: keep }} }},
      states: {{ a: {{ on: {{ go: "b" }} }}, b: {{ invoke: {{ src: {source}, onDone: {{ actions: keep }}, onSnapshot: {{ actions: keep }} }} }} }},
    }}) }};"""
    shop = Shop(sandbox, script)
    [(effect, _)] = asked(shop.send("go"))
    assert context(shop.answer(effect, Answer(200, text="hi")))["got"] == "hi"


def test_an_action_may_ask(sandbox: Sandbox) -> None:
    """What comes of it is its own affair: XState waits for no action."""
    script = """
    const { createMachine } = require("xstate");
    module.exports = { default: createMachine({ on: { go: { actions: async () => {
      console.log("got " + (await (await fetch("https://a.example/")).text()));
    } } } }) };"""
    shop = Shop(sandbox, script)
    [(effect, _)] = asked(shop.send("go"))
    assert shop.answer(effect, Answer(200, text="hi")).logs == [("info", "got hi")]
