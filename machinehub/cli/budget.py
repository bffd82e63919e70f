"""`machinehub check --budget`: what a machine's example events cost, measured in a sandbox of this
command's own.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from machinehub.errors import CallerError
from machinehub.ids import Digest
from machinehub.session.decide.events import check_event
from machinehub.session.decide.identity import Identity
from sandbox.protocol.ids import Slot, Ticket
from sandbox.protocol.inputs import event_input, start_input
from sandbox.protocol.messages import NO_COST, Done, Failed, Open, Step

if TYPE_CHECKING:
    from machinehub.limits import Limits
    from machinehub.model import Image
    from machinehub.workers.pool import WorkerPool
    from machinehub.workers.process import WorkerProcess
    from sandbox.protocol.messages import Cost, ToHub

NOW_MS: Final = 1_700_000_000_000
SEED: Final = 1
_SLOT: Final = Slot(1)
_DIGEST: Final = Digest("budget")
WAIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One input: what it was, what became of it (`accepted`, or a code), and what it took."""

    event: str
    outcome: str
    detail: str
    cost: Cost
    cpu_ms_max: int

    def as_json(self) -> dict[str, Any]:
        return {
            "event": self.event,
            "outcome": self.outcome,
            "detail": self.detail,
            "cpu_us": self.cost.cpu_us,
            "memory_bytes": self.cost.memory_bytes,
            "fuel": self.cost.fuel,
        }


class Answers:
    """Hears what the one worker says."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[ToHub | None] = asyncio.Queue()

    def worker_answered(self, _worker: WorkerProcess, messages: list[ToHub], /) -> None:
        for message in messages:
            if isinstance(message, Done | Failed):
                self._waiting.put_nowait(message)

    def worker_lost(self, _worker: WorkerProcess, /) -> None:
        self._waiting.put_nowait(None)

    async def next(self) -> Done | Failed:
        answer = await asyncio.wait_for(self._waiting.get(), WAIT_S)
        if not isinstance(answer, Done | Failed):
            return Failed(
                _SLOT, Ticket(0), "worker_crashed", "the sandbox died of this event", None
            )
        return answer


async def measure(
    pool: WorkerPool, answers: Answers, image: Image, events: list[dict[str, Any]], limits: Limits
) -> list[Measured]:
    """Starts a session, sends the events one after the other, as one client; an event that is
    refused changes nothing for the next.
    """
    worker = await pool.wait_for_worker(modules=image.is_module)
    worker.take(_DIGEST, image)
    worker.ask(
        _SLOT,
        Open(
            _SLOT,
            Ticket(0),
            _DIGEST,
            limits.memory_bytes,
            limits.snapshot_bytes,
            limits.emitted_bytes,
            None,
        ),
    )
    opened = await answers.next()
    if isinstance(opened, Failed):
        return [Measured("(start)", opened.code, opened.message, opened.cost, limits.start_cpu_ms)]
    measured: list[Measured] = []
    sender = Identity("example").sender
    inputs = [("(start)", start_input(SEED, None), limits.start_cpu_ms)]
    inputs += [
        (str(event.get("type", "(no type)")), msgspec.json.encode(event), limits.event_cpu_ms)
        for event in events
    ]
    for ticket, (name, given, cpu_ms) in enumerate(inputs, start=1):
        data = given
        if ticket > 1:
            try:
                check_event(given, bytes_max=limits.event_bytes, depth_max=limits.event_depth)
            except CallerError as error:  # the hub would not even ask the machine
                measured.append(Measured(name, error.code, error.detail, NO_COST, cpu_ms))
                continue
            data = event_input(SEED, given, sender)
        worker.ask(_SLOT, Step(_SLOT, Ticket(ticket), data, NOW_MS + ticket, cpu_ms))
        answer = await answers.next()
        if isinstance(answer, Done):
            measured.append(Measured(name, "accepted", "", answer.cost, cpu_ms))
            continue
        measured.append(Measured(name, answer.code, answer.message, answer.cost, cpu_ms))
        if ticket == 1 or answer.code in ("session_lost", "worker_crashed"):
            break
    return measured
