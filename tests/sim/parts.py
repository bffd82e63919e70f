"""What the simulated hub stands on besides its database: workers that crash, stall and lie.

Everything of `machinehub/session` is the real thing. The
machine is a list of tokens: whoever knows the journal knows what the state must be (`fold`).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from machinehub.errors import Unavailable
from machinehub.model import Entry, Image
from sandbox.protocol.messages import (
    Checkpoint,
    Close,
    Done,
    Failed,
    Frozen,
    Open,
    Replay,
    Replayed,
    Step,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from sandbox.protocol.messages import ToHub
    from tests.sim.loop import VirtualLoop

CHECKPOINT_INPUTS = 6
DAMAGED = b"\0"


class SimClock:
    """The computer's clock, as far as the hub can tell."""

    ticks = True

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_ms(self) -> int:
        return 1_700_000_000_000 + int(self._loop.now_s * 1000)

    def monotonic_s(self) -> float:
        return self._loop.now_s


# --- the machine ----------------------------------------------------------------------------------


UNDONE = {"FAIL": "machine_error", "LOOP": "cpu_exceeded"}


@dataclass
class Left:
    """What a turn leaves behind besides the snapshot."""

    timers: list[list[int]] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    withdrawn: list[int] = field(default_factory=list)


@dataclass
class State:
    tokens: list[str] = field(default_factory=list)
    timers: dict[int, int] = field(default_factory=dict)
    last_timer: int = 0
    finished: bool = False
    started: bool = False
    here: list[str] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    """Requests to the world that wait for their answers."""
    last_asked: int = 0

    def freeze(self) -> bytes:
        timers, requests = list(self.timers.items()), [self.asked, self.last_asked]
        return json.dumps(
            [self.tokens, timers, self.last_timer, self.finished, self.here, *requests]
        ).encode()

    @classmethod
    def thaw(cls, data: bytes) -> State:
        tokens, timers, last_timer, finished, here, asked, last_asked = json.loads(data)
        known = dict(map(tuple, timers))
        return cls(tokens, known, last_timer, finished, True, here, asked, last_asked)

    def snapshot(self) -> bytes:
        return json.dumps(
            {
                "tokens": self.tokens,
                "here": self.here,
                "status": "done" if self.finished else "active",
            }
        ).encode()

    def step(self, data: bytes, now_ms: int) -> bytes | str:
        """One input, as the guest does it: an outbox, or the code of what undid it."""
        kind, _, *rest = json.loads(data)
        left = Left()
        match kind:
            case 0:
                self.tokens.append("start")
                self.started = True
            case 2:
                due = self.timers.pop(rest[0], None)
                if due is None:  # cancelled by an input just before: it does nothing
                    return b"[1,%d,null]" % self.finished
                assert due <= now_ms, "a timer fired before its time"
                self.tokens.append(f"t{rest[0]}")
            case 4:
                if rest[0] not in self.asked:  # withdrawn by an input just before
                    return b"[1,%d,null]" % self.finished
                if (code := self._answered(*rest)) is not None:
                    return code
            case _ if rest[0]["type"].startswith("presence."):
                if self.finished:
                    return b"[1,1,null]"
                self._came_or_left(rest[1]["id"], came=rest[0]["type"] == "presence.joined")
            case _:
                if rest[0]["type"] in UNDONE:
                    return UNDONE[rest[0]["type"]]
                if not self.finished:
                    self._do(rest[0], now_ms, left)
        shown = json.loads(self.snapshot())
        timers, requests = [left.timers, left.cancelled], [left.requests, left.withdrawn]
        return json.dumps([3, int(self.finished), shown, [], *timers, [], "", *requests]).encode()

    def _answered(self, request: int, answer: Any) -> str | None:
        """Takes an answer, or says why not."""
        if "error" not in answer:
            assert answer["text"] == f"sim:{request}"
            if request % 5 == 4 and len(self.tokens) % 3 == 0:
                return "machine_error"  # it cannot take it just now
        self.asked.remove(request)
        self.tokens.append(f"a{request}")
        return None

    def _came_or_left(self, who: str, *, came: bool) -> None:
        others = [there for there in self.here if there != who]
        self.here = [*self.here, who] if came else others

    def _do(self, event: Any, now_ms: int, left: Left) -> None:
        self.tokens.append(event["token"])
        if "after" in event:
            self.last_timer += 1
            self.timers[self.last_timer] = now_ms + event["after"]
            left.timers.append([self.last_timer, now_ms + event["after"]])
        if event.get("cancel") and self.timers:
            timer = min(self.timers)
            del self.timers[timer]
            left.cancelled.append(timer)
        if "ask" in event:
            self.last_asked += 1
            self.asked.append(self.last_asked)
            request = {"method": "GET", "url": f"sim:{self.last_asked}"}
            left.requests.append([self.last_asked, request])
        if event.get("withdraw") and self.asked:
            left.withdrawn.append(self.asked.pop(0))
        self.finished = event["type"] == "END"


def fold(entries: Sequence[Entry]) -> State:
    """What the journal says the state is."""
    state = State()
    # A machine that refused to hear that somebody left is told again when they come back.
    refused = {
        json.loads(entry.input)[3]["id"]
        for entry in entries
        if entry.attempt and b'"presence.left"' in entry.input
    }
    for number, entry in enumerate([entry for entry in entries if entry.attempt == 0], 1):
        assert entry.seq == number, f"input {number} is missing from the journal"
        outbox = state.step(entry.input, entry.now_ms)
        assert isinstance(outbox, bytes), "an input that was undone is in the journal as applied"
        here = [who for who in state.here if who not in refused]
        assert len(set(here)) == len(here), f"somebody came twice: {here}"
    return state


# --- workers --------------------------------------------------------------------------------------


class SimWorker:
    """Does as `sandbox.worker` does, in order, after a while; or dies."""

    def __init__(self, pool: SimPool) -> None:
        self.pool = pool
        self.lost = False
        self.suspect: int | None = None
        self._sessions: dict[int, tuple[State, list[tuple[bytes, int]]]] = {}
        self._inbox: list[Any] = []
        self._heard: dict[tuple[int, int], int] = {}
        self._owed: list[int] = []
        self._busy = False

    def ask(self, about: int, message: Any) -> None:
        self._owed.append(about)
        self.tell(message)

    def tell(self, message: Any) -> None:
        assert not self.lost or isinstance(message, Close)
        self._inbox.append(message)
        if not self._busy:
            self._busy = True
            self.pool.loop.call_later(self.pool.chance.random() * 0.02, self._work)

    def take(self, digest: str, image: Image) -> None:
        pass

    def leave(self, digest: str) -> None:
        pass

    def resident_bytes(self) -> int:
        return 0

    def kill(self, why: str, *, suspect: int | None = None) -> None:
        self.die(suspect)

    def die(self, suspect: int | None = None) -> None:
        if self.lost:
            return
        self.lost = True
        self.suspect = self._owed[0] if suspect is None and self._owed else suspect
        self.pool.died(self)

    def _work(self) -> None:
        self._busy = False
        if self.lost:
            return
        chance = self.pool.chance
        answers: list[ToHub] = []
        count = chance.randint(1, len(self._inbox)) if self._inbox else 0
        for message in self._inbox[:count]:
            if self.pool.trouble and chance.random() < 0.01:
                if chance.random() < 0.5:
                    self._send(answers)  # some of what it did is heard
                self.die()
                return
            self._handle(message, answers)
            if self.lost:
                return
        del self._inbox[:count]
        if self.pool.trouble and chance.random() < 0.003 and answers:
            answers.append(answers[-1])  # it says something twice
        self._send(answers)
        if self._inbox and not self.lost:
            self._busy = True
            self.pool.loop.call_later(chance.random() * 0.02, self._work)

    def _send(self, answers: list[ToHub]) -> None:
        for answer in answers:
            if not isinstance(answer, Frozen) and self._owed:
                self._owed.pop(0)
            if isinstance(answer, Done) and answer.result.startswith((b"[1,", b"[3,")):
                for timer, _ in [*json.loads(answer.result), [], []][4]:
                    self._heard[answer.session, timer] = self.pool.now_ms()
        if answers and not self.lost and self.pool.listener is not None:
            self.pool.listener.worker_answered(self, answers)

    def _handle(self, message: Any, answers: list[ToHub]) -> None:
        match message:
            case Open():
                try:
                    state = State.thaw(message.checkpoint) if message.checkpoint else State()
                except ValueError:
                    answers.append(
                        Failed(message.session, message.ticket, "session_damaged", "no JSON", None)
                    )
                    return
                self._sessions[message.session] = (state, [])
                answers.append(Done(message.session, message.ticket, b""))
            case Replay() | Checkpoint() if message.session not in self._sessions:
                answers.append(_lost(message))
            case Replay():
                state, tail = self._sessions[message.session]
                snapshot, timers = b"null", []
                count = (
                    self.pool.chance.randint(1, len(message.inputs))
                    if message.cpu_us
                    else len(message.inputs)
                )
                for position, (data, now_ms) in enumerate(message.inputs[:count]):
                    outbox = state.step(data, now_ms)
                    assert isinstance(outbox, bytes)
                    said = [*json.loads(outbox), [], [], []]
                    snapshot = json.dumps(said[2]).encode() if said[2] else snapshot
                    timers.append((position, [tuple(pair) for pair in said[4]], said[5]))
                tail += message.inputs[:count]
                answers.append(
                    Replayed(
                        message.session, message.ticket, snapshot, state.finished, timers, count
                    )
                )
            case Step():
                self._step(message, answers)
            case Checkpoint():
                state, tail = self._sessions[message.session]
                tail.clear()
                answers.append(Done(message.session, message.ticket, state.freeze()))
            case Close():
                self._sessions.pop(message.session, None)

    def _check_order(self, message: Step, state: State) -> None:
        """No timer fires before an earlier one that the hub had heard of when it fired this one."""
        timer = json.loads(message.input)[2]
        due = state.timers.get(timer)
        for other, other_due in state.timers.items() if due is not None else ():
            heard_ms = self._heard.get((message.session, other))
            assert (
                heard_ms is None or heard_ms >= message.now_ms or (due, timer) <= (other_due, other)
            ), "timers fire out of order"

    def _step(self, message: Step, answers: list[ToHub]) -> None:
        if b"POISON" in message.input:
            self.die(message.session)
            return
        if message.session not in self._sessions:
            answers.append(_lost(message))
            return
        state, tail = self._sessions[message.session]
        if self.pool.trouble and self.pool.chance.random() < 0.003:
            del self._sessions[message.session]  # it could not undo a turn
            answers.append(_lost(message))
            return
        if message.input.startswith(b"[2,"):
            self._check_order(message, state)
        outbox = state.step(message.input, message.now_ms)
        if isinstance(outbox, str):
            answers.append(Failed(message.session, message.ticket, outbox, "as asked", None))
            return
        tail.append((message.input, message.now_ms))
        answers.append(Done(message.session, message.ticket, outbox))
        if len(tail) >= CHECKPOINT_INPUTS:
            tail.clear()
            answers.append(Frozen(message.session, state.freeze()))


def _lost(message: Step | Replay | Checkpoint) -> Failed:
    return Failed(message.session, message.ticket, "session_lost", "", None)


class SimPool:
    def __init__(self, loop: VirtualLoop, chance: random.Random, workers: int = 2) -> None:
        self.loop = loop
        self.chance = chance
        self.trouble = True
        self.listener: Any = None
        self.workers = [SimWorker(self) for _ in range(workers)]

    def now_ms(self) -> int:
        return SimClock(self.loop).now_ms()

    def choose(self, *, modules: bool = False, machine: str = "") -> SimWorker | None:
        return (
            self.chance.choice(self.workers)
            if self.workers and self.chance.random() < 0.5
            else None
        )

    def at_hand(self, digest: str) -> Image | None:
        return Image(image=b"", engine="e") if self.chance.random() < 0.5 else None

    async def wait_for_worker(self, *, modules: bool = False, machine: str = "") -> SimWorker:
        while not self.workers:
            await asyncio.sleep(0.05)
        await asyncio.sleep(self.chance.random() * 0.01)
        if self.trouble and self.chance.random() < 0.01:
            raise Unavailable("unavailable", "no worker can be started")
        return self.chance.choice(self.workers) if self.workers else await self.wait_for_worker()

    def died(self, worker: SimWorker) -> None:
        self.workers.remove(worker)
        self.loop.call_later(
            self.chance.random() * 0.5, lambda: self.workers.append(SimWorker(self))
        )
        if self.listener is not None:
            self.listener.worker_lost(worker)

    async def image(self, digest: str) -> Image:
        await asyncio.sleep(self.chance.random() * 0.005)
        if self.trouble and self.chance.random() < 0.02:
            raise Unavailable("unavailable", "the image cannot be read")
        return Image(image=b"", engine="e")
