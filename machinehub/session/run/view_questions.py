"""Asks workers what members see of a snapshot: the machine's `view`, in an instance of the
version's image that no session has (sandbox/judge.py).

Decides: how many members one question is about, and who is asked about at all: where a view asked
for nothing but a member's roles, everybody with the same roles sees the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakValueDictionary

import msgspec

from machinehub.errors import Unavailable, ViewFailed
from machinehub.session.decide.identity import read_sender
from sandbox.protocol.ids import Ticket
from sandbox.protocol.messages import Done, View

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence

    from machinehub.clock import Clock
    from machinehub.ids import MachineId
    from machinehub.limits import Limits
    from machinehub.logs import MachineLogs
    from machinehub.metrics import Metrics
    from machinehub.session.decide.session import Session
    from machinehub.session.run.placement import Placement
    from machinehub.session.run.questions import Questions
    from machinehub.session.run.worker_interfaces import Images, SandboxWorker, SandboxWorkers

MEMBERS_AT_ONCE: Final = 16
"""Of one question: the worker's other sessions have their turns in between."""
AT_ONCE: Final = 2
PAUSE_S: Final = 0.4
"""A machine whose views take all the CPU that they may has a fifth of a worker in the end."""
TRIES: Final = 3
"""How often a worker is asked, where one ends over it."""


class Seen(NamedTuple):
    """What one member sees of a snapshot: JSON, and the JSON of each emitted event, None for one
    that it does not hear.
    """

    state: bytes
    emitted: list[bytes | None]
    for_roles: bool
    """Whether everybody with the same roles sees the same."""


class ViewQuestions:
    def __init__(
        self,
        pool: SandboxWorkers,
        images: Images,
        clock: Clock,
        limits: Limits,
        *,
        placement: Placement,
        questions: Questions,
        logs: MachineLogs,
        metrics: Metrics,
    ) -> None:
        self._pool = pool
        self._images = images
        self._clock = clock
        self._limits = limits
        self._placement = placement
        self._questions = questions
        self._logs = logs
        self._metrics = metrics
        self._turns: WeakValueDictionary[MachineId, asyncio.Semaphore] = WeakValueDictionary()

    async def ask(
        self,
        session: Session,
        state: bytes,
        emitted: Sequence[bytes],
        members: Collection[bytes],
    ) -> dict[bytes, Seen | None]:
        """What each of these members (`sender`s, as JSON) sees of a snapshot and of events that
        were emitted; None where that cannot be found out, which the machine's log says. Raises
        `Unavailable`.
        """
        seen: dict[bytes, Seen | None] = {}
        left = list(dict.fromkeys(members))
        # Line feeds part a question; in JSON they are white space between tokens.
        rest = b"\n%b\n[%b]" % (_line(state), b",".join(map(_line, emitted)))
        by_roles: dict[tuple[str, ...], Seen] = {}
        most = MEMBERS_AT_ONCE
        while left:
            some = left[:most]
            question = b"[1,[%b]]%b" % (b",".join(some), rest)
            try:
                async with self._turn_of(session.machine_id):
                    answer = await self._answer(session, question)
                found = self._read(session, answer, len(some), len(emitted))
            except ViewFailed as error:
                if len(some) > 1:
                    most = 1  # who of them is it?
                    continue
                self._note(session, error.detail)
                found = [None]
            for member, view in zip(some, found, strict=False):
                seen[member] = view
                if view is not None and view.for_roles:
                    by_roles[roles_of(member)] = view
            left = left[len(found) :]
            if by_roles:
                shared = {each: by_roles.get(roles_of(each)) for each in left}
                seen |= {each: view for each, view in shared.items() if view is not None}
                left = [each for each in left if each not in seen]
        return seen

    @contextlib.asynccontextmanager
    async def _turn_of(self, machine_id: MachineId) -> AsyncIterator[None]:
        """So many questions of one machine are under way at once, and after one that took all its
        CPU there is a pause: others have the worker meanwhile.
        """
        turns = self._turns.setdefault(machine_id, asyncio.Semaphore(AT_ONCE))
        async with turns:
            try:
                yield
            except ViewFailed:
                await asyncio.sleep(PAUSE_S)
                raise

    async def _answer(self, session: Session, question: bytes) -> bytes:
        """Raises `ViewFailed` for what the machine is to blame for, `Unavailable`."""
        limits = self._limits
        for tries_left in reversed(range(TRIES)):
            try:
                async with self._worker(session) as worker:
                    slot = self._placement.new_slot()
                    view = View(
                        slot,
                        Ticket(1),
                        session.record.digest,
                        question,
                        self._clock.now_ms(),
                        limits.event_cpu_ms,
                        limits.memory_bytes,
                    )
                    said = await self._questions.ask(worker, slot, view)
            except Unavailable as error:
                if error.code == "view_failed":
                    raise ViewFailed("view_failed", error.detail) from None
                if not tries_left:
                    raise
            else:
                assert isinstance(said, Done)
                return said.result
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def _worker(self, session: Session) -> AsyncIterator[SandboxWorker]:
        """A worker that has the session's image: the session's own, if it is on one."""
        digest = session.record.digest
        image = await self._images.image(digest)
        worker = self._placement.worker_of(session)
        if worker is None or worker.lost:
            worker = await self._pool.wait_for_worker(
                modules=image.is_module, machine=session.machine_id
            )
        worker.take(digest, image)
        try:
            yield worker
        finally:
            if not worker.lost:
                worker.leave(digest)

    def _read(
        self, session: Session, answer: bytes, members: int, events: int
    ) -> list[Seen | None]:
        """An answer (sandbox/guest/prelude/judge.ts), which a worker that was taken over may have
        made up. Raises `ViewFailed`.
        """
        try:
            answer.decode()  # parts that stay raw are not looked at otherwise
            of, shown = msgspec.json.decode(answer, type=tuple[list[int], list[list[msgspec.Raw]]])
            views = [self._seen(session, each, events) for each in shown]
            if not 1 <= len(of) <= members or not 0 <= min(of) <= max(of) < len(views):
                raise ValueError("an answer to another question")
        except (msgspec.MsgspecError, RecursionError, ValueError, IndexError) as error:
            raise ViewFailed("view_failed", f"the answer cannot be read: {error}"[:300]) from None
        return [views[each] for each in of]

    def _seen(self, session: Session, parts: list[msgspec.Raw], events: int) -> Seen | None:
        """One view. Raises `ValueError`, `IndexError`, `msgspec.MsgspecError`."""
        if bytes(parts[0]) == b"0":
            fault: Any = msgspec.json.decode(parts[1], type=dict[str, Any])
            self._note(session, str(fault.get("message"))[:2000])
            return None
        state, heard, shared = (bytes(each) for each in parts[1:])
        emitted = [bytes(each) for each in msgspec.json.decode(heard, type=list[msgspec.Raw])]
        if len(emitted) != events or len(state) > self._limits.snapshot_bytes:
            raise ValueError("an answer to another question")
        kept = [None if each == b"null" else each for each in emitted]
        return Seen(state, kept, for_roles=shared == b"1")

    def _note(self, session: Session, why: str) -> None:
        """For the machine's author."""
        self._metrics.refused.labels(code="view_failed").inc()
        line = f"view_failed: {why}"
        now_ms = self._clock.now_ms()
        self._logs.add(session.machine_id, session.session_id, "error", line, now_ms, None)


def _line(json: bytes) -> bytes:
    return json.replace(b"\n", b" ") if b"\n" in json else json


@functools.lru_cache(maxsize=10_000)
def roles_of(member: bytes) -> tuple[str, ...]:
    """Of a `sender` that this hub wrote."""
    return read_sender(member).roles or ()
