"""A fuzzer for everything that reads bytes of somebody who may be hostile: `make fuzz` for minutes,
`test_fuzz.py` for seconds.

    python -m tests.attacks.fuzz [--seconds 60] [--seed 1] [TARGET ...]

A target takes well-formed data, changed here and there, and must answer as its own errors say;
anything else ends the run with the target and the seed that show it again. Mutation is blind: what
guides it are the samples, which are real frames, modules, checkpoints and events.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import random
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
import wasmtime

from machinehub.edge.addresses import read_url
from machinehub.errors import CallerError
from machinehub.ids import Digest, EventId, MachineId, Seq, SessionId, SessionKey
from machinehub.limits import Limits
from machinehub.model import Fault, Kind, SessionRecord
from machinehub.protocols.native import frames as native
from machinehub.protocols.sky.source import Machine, module_of
from machinehub.protocols.sky.superjson import NotSuperjson
from machinehub.protocols.sky.superjson import read as read_superjson
from machinehub.session.decide.answers import BrokenWorker
from machinehub.session.decide.conditions import read_condition
from machinehub.session.decide.events import check_event, check_input, check_metadata
from machinehub.session.decide.identity import Identity
from machinehub.session.decide.session import Session
from machinehub.session.decide.turn import Pending
from machinehub.session.messages import Settled
from sandbox import compression, validate
from sandbox import image as images
from sandbox.checkpoint import DamagedCheckpoint, apply_checkpoint, encode_checkpoint
from sandbox.module import Answer, ModuleState
from sandbox.protocol import frames, limits, messages
from sandbox.protocol.ids import Slot, Ticket, TimerId
from sandbox.protocol.inputs import event_input
from sandbox.protocol.outbox import decode_outbox
from sandbox.wasm_reader import BadModule

if TYPE_CHECKING:
    from collections.abc import Callable

Random = random.Random
PAGES: Final = 256
MODULE_BYTES: Final = 2**20
TURNS: Final = 6
_INTERESTING: Final = (
    b"",
    b"\0",
    b"\xff",
    b"\x80",
    b"\x7f",
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff",
    b'"',
    b"{",
    b"[",
    b"]",
    b"}",
    b",",
    b"1e999",
    b"-",
    b"null",
    b"\\u0000",
    b"\\ud800",
    b"\xed\xa0\x80",
    b'"type":"xstate.stop"',
)
"""What parsers stumble over."""


def mutate(rng: Random, data: bytes) -> bytes:
    """`data` with a few places changed, cut, doubled or swapped."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(7):
            case 0 if at < len(out):
                out[at] = rng.randrange(256)
            case 1 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                out[at:at] = rng.choice(_INTERESTING)
            case 3:
                del out[at : at + rng.choice((1, 1, 2, 8, 100))]
            case 4:
                end = min(len(out), at + rng.choice((1, 4, 30)))
                out[at:at] = out[at:end] * rng.choice((1, 1, 2, 50))
            case 5:
                other = rng.randrange(len(out) + 1)
                size = rng.choice((1, 4, 16))
                out[at : at + size], out[other : other + size] = (
                    out[other : other + size],
                    out[at : at + size],
                )
            case _:
                out[at:] = b"" if rng.random() < 0.2 else out[at:]
    return bytes(out)


# --- between hub and worker -----------------------------------------------------------------------

_OUTBOXES: Final = (
    b'[1,0,{"value":"a","context":{"n":1},"status":"active","tags":[]},[{"type":"e"}],[[1,1700000000000]],[2],[["info","hello"]]]',
    b"[1,0,null]",
    b"[1,1,null,[],[],[1]]",
    b'[0,{"code":"machine_error","message":"m"}]',
)


def _to_hub(rng: Random) -> list[messages.ToHub]:
    cost = messages.Cost(rng.randrange(1000), 65536)
    return rng.sample(
        [
            messages.Ready("e", "b", [("files", True, "none")]),
            messages.Progress("engine"),
            messages.Said("words"),
            messages.Done(Slot(1), Ticket(1), rng.choice(_OUTBOXES), cost),
            messages.Failed(Slot(1), Ticket(1), "cpu_exceeded", "m", "a.ts:1:1", cost),
            messages.Frozen(Slot(1), b"checkpoint"),
            messages.Replayed(
                Slot(1), Ticket(1), b"null", False, [(0, [(TimerId(1), 5)], [TimerId(2)])], 1
            ),
            messages.Built(Ticket(1), b"image", b"{}", [messages.BuildMessage("w")], 1, 1),
            messages.BuildFailed(Ticket(1), "c", [messages.BuildMessage("m", "f", 1, 1)]),
            messages.EngineGiven(Ticket(1), "d", b"e"),
            messages.ModuleBuilt(Ticket(1), b"i", b"c", b"m", "e", b"{}", 1, 1),
            messages.Compiled(Ticket(1), b"c"),
            messages.InputsFound(Ticket(1), ["f"]),
        ],
        rng.randrange(1, 5),
    )


def hear_a_worker(rng: Random) -> None:
    """What a worker that was taken over sends: batches of typed messages, or `BadFrame`."""
    reader = frames.to_hub_reader()
    data = mutate(rng, b"".join(frames.encode(_to_hub(rng)) for _ in range(2)))
    try:
        while data:
            cut = rng.randrange(1, len(data) + 1)
            for batch in reader.feed(data[:cut]):
                assert all(isinstance(message, messages.Message) for message in batch)
            data = data[cut:]
    except frames.BadFrame:
        pass


def be_a_worker(rng: Random) -> None:
    """What the hub sends, changed: the other side's reader says yes or `BadFrame` too."""
    sent: list[messages.ToWorker] = [
        messages.Open(Slot(1), Ticket(1), "d", 1, 1, 1, None),
        messages.Step(Slot(1), Ticket(2), b"[1,1,{}]", 5, 50),
        messages.LoadImage("d", b"i"),
        messages.Build(Ticket(1), "m.ts", {"m.ts": "x"}, "reject", "compiled", 1, 1, 1),
        messages.Replay(Slot(1), Ticket(1), [(b"[0,1]", 5)], 0),
        messages.Close(Slot(1)),
        messages.BuildModule(Ticket(1), b"m", "n", 1, 1),
    ]
    with contextlib.suppress(frames.BadFrame):
        frames.to_worker_reader().feed(mutate(rng, frames.encode(rng.sample(sent, 3))))


def answer_a_session(rng: Random) -> None:
    """Results for a session that are not what a worker may say: a turn, or `BrokenWorker`, and
    numbers without gaps.
    """
    session = Session(
        SessionRecord(
            key=SessionKey(1),
            machine_id=MachineId("m"),
            session_id=SessionId("s"),
            version=1,
            digest=Digest("d"),
            hears_presence=False,
            created_at_ms=0,
        ),
        limits=Limits(timers=20, snapshot_bytes=500),
    )
    session.loading()
    session.start_anew()
    session.offer(Pending(Kind.START, b"[0,1]", 0))
    tickets = [session.pending[0].ticket]
    for _ in range(TURNS):
        session.offer(Pending(Kind.EVENT, b"[1,1,{}]", 0))
        tickets.append(session.pending[-1].ticket)
        ticket = rng.choice(tickets) if rng.random() < 0.2 else tickets[0]
        before = session.seq
        try:
            turn = session.done(
                ticket,
                mutate(rng, rng.choice(_OUTBOXES)) if rng.random() < 0.7 else rng.choice(_OUTBOXES),
            )
            session.committed(turn)
        except BrokenWorker:
            return
        tickets.pop(0)
        assert session.seq in (before, before + 1)
        assert session.snapshot.startswith(b"{")
        assert len(session.snapshot.decode()) <= 500
        if session.finished:
            return


# --- strangers' modules ---------------------------------------------------------------------------


@functools.cache
def _modules() -> list[bytes]:
    plain = """(module (memory (export "memory") 2 10) (global $n (mut i32) (i32.const 0)) (global $f (mut f64) (f64.const 1)) (table 2 funcref) (elem (i32.const 0) $answer)
        (data (i32.const 16) "[1,0,null]") (type $t (func (result i64)))
        (func $answer (result i64) (i64.const 68719476746))
        (func (export "alloc") (param i32) (result i32) (global.set $n (i32.add (global.get $n) (local.get 0))) (i32.const 4096))
        (func (export "start") (param i32 i32 i64) (result i64) (local f64 i64) (block (br_if 0 (i32.const 1)) (loop (br 1))) (call_indirect (type $t) (i32.const 0)))
        (func (export "step") (param i32 i32 i64) (result i64) (memory.fill (i32.const 0) (i32.const 1) (i32.const 2)) (memory.copy (i32.const 0) (i32.const 1) (i32.const 2))
            (if (result i64) (i32.eqz (local.get 0)) (then (call $answer)) (else (i64.trunc_sat_f64_s (global.get $f)))))
        (func (export "_initialize") (drop (memory.grow (i32.const 1)))))"""
    return [bytes(wasmtime.wat2wasm(plain))]


_compiler: Final = functools.cache(lambda: wasmtime.Engine())


def read_a_module(rng: Random) -> None:
    """Reading says yes or `BadModule`; what it says yes to imports a memory and exports what the
    host calls, if it compiles at all.
    """
    try:
        code = validate.split(
            validate.read_module(
                mutate(rng, rng.choice(_modules())), pages_max=PAGES, bytes_max=MODULE_BYTES
            )
        )
    except BadModule:
        return
    try:
        compiled = wasmtime.Module(_compiler(), code)
    except wasmtime.WasmtimeError:
        return
    assert [(each.module, each.name) for each in compiled.imports] == [("image", "memory")]
    assert {
        each.name for each in compiled.exports if not each.name.startswith("machinehub.")
    } <= set(validate._CALLS)


class _Memory:
    """What `ModuleState` sees of an instance whose every answer is `text`."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    def call(self, _name: str, *_arguments: int) -> int:
        return 64

    def call_i64(self, _name: str, *_arguments: int) -> int:
        return 64 << 32 | len(self._text)

    def write(self, _at: int, _data: bytes) -> None: ...

    def read(self, _at: int, _length: int) -> bytes:
        return self._text


def hear_a_module(rng: Random) -> None:
    """What a module answers is an outbox that the hub can read, a refusal, or a named trap."""
    from sandbox.image import ModuleHandles
    from sandbox.traps import Trap

    state = ModuleState(ModuleHandles([], limits.GuestLimits(timers=5)), ())
    for kind in (b"[0,1]", b'[1,1,{"type":"X"},{"id":"c"}]', b"[2,1,1]"):
        memory: Any = _Memory(mutate(rng, rng.choice(_OUTBOXES)))
        try:
            outbox = state.turn(memory, kind, 1_700_000_000_000)
        except Trap:
            continue
        if not outbox.startswith(b"[0,"):
            said = decode_outbox(outbox)
            assert isinstance(msgspec.json.decode(outbox, type=Answer), Answer)
            assert all(due >= 1_700_000_000_000 for _, due in said.timers_set)


# --- what is kept ---------------------------------------------------------------------------------


@functools.cache
def _checkpoint() -> tuple[bytes, bytes]:
    image = random.Random(1).randbytes(65536)
    memory = bytearray(image)
    memory[5000:5010] = b"0123456789"
    return image, encode_checkpoint(image, memoryview(bytes(memory)), scratch=(range(0), range(0)))


def restore_a_checkpoint(rng: Random) -> None:
    """Damage is always noticed: what is applied is what was written."""
    image, checkpoint = _checkpoint()
    try:
        size, pages, extras = apply_checkpoint(
            mutate(rng, checkpoint), memoryview(image), bytes_max=65536
        )
    except DamagedCheckpoint:
        return
    assert (size, [(at, content[904:914]) for at, content in pages], extras) == (
        65536,
        [(4096, b"0123456789")],
        (),
    )


def read_an_image(rng: Random) -> None:
    """An image's header, from a database that somebody changed."""
    image = images.build_image(bytes(65536), images.Handles(engine="e"), pages_max=256)
    with contextlib.suppress(ValueError, IndexError):
        images.read_handles(mutate(rng, image[:300]))


def unpack(rng: Random) -> None:
    """What is compressed grows to its bound and no further, whatever size it announces."""
    with contextlib.suppress(ValueError):
        assert (
            len(compression.unpack(mutate(rng, compression.pack(b"x" * 10_000)), bytes_max=20_000))
            <= 20_000
        )


# --- clients --------------------------------------------------------------------------------------

_EVENTS: Final = (
    b'{"type":"increment"}',
    b'{"type":"a","v":[1,2.5,-0,1e10,"x",null,true],"o":{"__proto__":{"x":1}}}',
    b'{"type":"\\u00e9","v":"\xf0\x9f\x98\x80"}',
    b'{"v":1,"type":"a"}',
    b'{"type":"xstate.stop"}',
    b'{"type":"presence.joined"}',
)


def send_an_event(rng: Random) -> None:
    """An event is refused with a code, or is an input that any parser reads, of a type that is the
    client's to send.
    """
    event = mutate(rng, rng.choice(_EVENTS))
    try:
        check_event(event, bytes_max=65536, depth_max=64)
    except CallerError as error:
        assert error.code in (
            "invalid_event",
            "event_too_deep",
            "invalid_utf8",
            "event_too_large",
        ), error.code
        return
    data = event_input(5, event, Identity("c").sender)
    read = json.loads(data, parse_int=float)
    assert len(read) == 4, "an event stays one value of its input"
    assert not read[2]["type"].startswith(("xstate.", "presence."))
    data.decode()


def send_a_frame(rng: Random) -> None:
    """A client's frame is one, or is not."""
    from machinehub.protocols.native.websocket import _decode

    frame = mutate(
        rng,
        b'{"type":"event","id":"c1-17","event":' + rng.choice(_EVENTS) + b',"metadata":{"a":1}}',
    )
    try:
        read = _decode(frame)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return
    try:
        check_event(read.event, bytes_max=65536, depth_max=64)
        check_metadata(bytes(read.metadata), bytes_max=4096, depth_max=64)
    except CallerError:
        pass
    if read.id is not None:
        settled = Settled(EventId(read.id), Seq(1), False, Fault("code", "detail"))
        msgspec.json.decode(native.settled_json(settled, with_cost=True))


def hear_statelys_clients(rng: Random) -> None:
    """superjson becomes JSON, or is refused; a source becomes a module, in time in proportion."""
    text = mutate(
        rng,
        b'{"json":{"apiKey":"k","type":"actor.send","event":{"type":"a","at":"x","n":["NaN",null]}},'
        b'"meta":{"values":{"event.at":["Date"],"event.n.0":["number"],"event.n.1":["undefined"]},'
        b'"referentialEqualities":{"event":["event.n"]}}}',
    )
    with contextlib.suppress(NotSuperjson):
        msgspec.json.encode(read_superjson(text))
    source = mutate(
        rng,
        b"import { setup, assign as a } from \"xstate\";\nimport type { T } from 'xstate';\n"
        b"export const access = 1;\nexport default setup({}).createMachine({});\n",
    ).decode("latin-1")
    made = Machine("m", 1, "m.ts", {"m.ts": source * rng.choice((1, 1, 50))}, {"root": {"id": "m"}})
    assert "const machine" in module_of(made)


def ask(rng: Random) -> None:
    """Addresses, inputs, conditions: an answer, or the caller's fault."""
    for work in (
        lambda: read_url(mutate(rng, b"/Wu5gAj@3/a%2Fb%20c/wait"), session_chars_max=128),
        lambda: check_input(mutate(rng, b'{"a":[1,{"b":null}]}'), bytes_max=4096, depth_max=64),
        lambda: read_condition(msgspec.json.decode(mutate(rng, b'{"matches":{"a":{"b":"c"}}}'))),
    ):
        with contextlib.suppress(CallerError, msgspec.MsgspecError, UnicodeDecodeError):
            work()


TARGETS: Final[dict[str, Callable[[Random], None]]] = {
    target.__name__: target
    for target in (
        hear_a_worker,
        be_a_worker,
        answer_a_session,
        read_a_module,
        hear_a_module,
        restore_a_checkpoint,
        read_an_image,
        unpack,
        send_an_event,
        send_a_frame,
        hear_statelys_clients,
        ask,
    )
}


def run(target: str, seed: int) -> None:
    """One try. The same seed does the same."""
    TARGETS[target](random.Random(f"{target} {seed}"))


def main() -> int:
    arguments = argparse.ArgumentParser(prog="tests.attacks.fuzz")
    arguments.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    arguments.add_argument("--seconds", type=float, default=60, help="for each target")
    arguments.add_argument("--seed", type=int, help="this one try only")
    options = arguments.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        arguments.error(f"no such target: {', '.join(unknown)}")
    for target in options.targets or TARGETS:
        if options.seed is not None:
            run(target, options.seed)
            continue
        seed, until = random.SystemRandom().getrandbits(40), time.monotonic() + options.seconds
        tries = 0
        while time.monotonic() < until:
            try:
                run(target, seed + tries)
            except BaseException:
                print(f"python -m tests.attacks.fuzz {target} --seed {seed + tries}")
                raise
            tries += 1
        print(f"{target}: {tries} tries")
    return 0


if __name__ == "__main__":
    sys.exit(main())
