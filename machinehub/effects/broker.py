"""Carries out what machines ask of the world, after the turn that asked is committed, and gives
them the answers.

Decides: how many requests are under way, when one is tried again, when it is given up. Requests are
rows of the database until their answers are inputs: one whose outcome is not known (the hub was
killed) is sent again, under the same key.

    asked -> waits for its machine's rate -> is carried out -> the answer is an input of the session
                        ^-- failed: tried again --'
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from machinehub.effect import Conclusion
from machinehub.effects.asked import Again, Asked
from machinehub.effects.retries import next_try_s
from machinehub.effects.room import Lane, Room
from machinehub.errors import CallerError, HubError, Unavailable
from machinehub.rates import Rates
from machinehub.session.decide.answers import OUR_FAULTS
from machinehub.session.port import Address
from machinehub.tasks import Tasks, look_on
from sandbox.protocol.effects import Answer, encode_answer, read_request, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from machinehub.clock import Clock, Entropy
    from machinehub.effect import Effect
    from machinehub.effects.asked import Carrier, Leave, Leaves
    from machinehub.ids import MachineId, SessionKey
    from machinehub.logs import MachineLogs
    from machinehub.metrics import Metrics
    from machinehub.session.port import Sessions
    from machinehub.store.effects import Due, DueEffect, EffectStore
    from sandbox.protocol.ids import EffectId

log = logging.getLogger("machinehub.effects")

LOOK_S: Final = 1.0
JOBS_MAX: Final = 5_000
"""Requests in memory; the others are found in the database later."""
JOBS_OF_ONE: Final = 500
"""Of one version."""
JOBS_ALWAYS: Final = 10
"""Of one version, though there are `JOBS_MAX`: others must not keep it from asking."""
PAGE: Final = 500
PAGES: Final = 4
"""So much of the table is looked through at once; the next time it goes on from there."""
ANSWER_TRIES: Final = 4
"""An answer whose turn was undone is given again after 1, 2 and 4 seconds; then the machine is told
that it could not take the answer.
"""
RETRY_S: Final = 1.0


@dataclass(slots=True, eq=False)
class Job:
    """A request that this hub carries out."""

    address: Address
    key: SessionKey
    effect: Effect
    tries: int = 0
    tried_at_ms: int | None = None
    tried_s: float = 0.0
    """When it was tried first, of the clock that does not jump."""
    task: asyncio.Task[None] | None = None
    takes_room: bool = False
    """Whether it is one of those that are being sent."""
    counts_in: Lane[Job] | None = None
    """Where it counts as one that is under way."""
    is_answered: bool = False
    """Whether its answer is on its way to the session."""

    @property
    def lane(self) -> tuple[MachineId, int]:
        return self.address.machine_id, self.address.version or 0


class Broker:
    """`Requests` (session/port.py). `start` it when sessions can be used."""

    def __init__(
        self,
        store: EffectStore,
        sessions: Sessions,
        leaves: Leaves,
        carry: Carrier,
        clock: Clock,
        entropy: Entropy,
        *,
        logs: MachineLogs,
        metrics: Metrics,
        at_once: int,
    ) -> None:
        """`at_once` requests of all machines are under way together, of which a machine has at
        most half, and a project its share (`Room`).
        """
        self._store = store
        self._sessions = sessions
        self._leaves = leaves
        self._carry = carry
        self._clock = clock
        self._entropy = entropy
        self._logs = logs
        self._metrics = metrics
        self._room: Room[Job] = Room(at_once)
        self._jobs: dict[SessionKey, dict[EffectId, Job]] = {}
        self._lanes: dict[tuple[MachineId, int], Lane[Job]] = {}
        self._rates: Rates[tuple[MachineId, int]] = Rates()
        self._count = 0
        self._counts: Counter[tuple[MachineId, int]] = Counter()
        self._looked: Due | None = None
        """How far the table was looked through; None for the whole of it."""
        self._tasks = Tasks()
        self._is_stopped = False
        self.on_call: Callable[[Address, Asked, Answer, int], None] = lambda *_: None
        """Hears of each request that ended, and how many milliseconds it took."""

    def start(self) -> None:
        if self._clock.ticks:
            self._tasks.spawn(look_on("requests", LOOK_S, self.look, log, logging.WARNING))

    def stop(self) -> None:
        """What is under way is not known to have happened: it is sent again at the next start."""
        self._is_stopped = True
        self._tasks.stop()
        self.forget_all()

    def forget_all(self) -> None:
        """The database may be another hub's now."""
        for jobs in list(self._jobs.values()):
            for job in list(jobs.values()):
                self._drop(job)

    @property
    def known(self) -> int:
        """Requests in memory."""
        return self._count

    @property
    def in_flight(self) -> int:
        """Those of them that were sent, and not answered yet."""
        return self._room.in_flight

    # --- what is asked ----------------------------------------------------------------------------

    def asked(self, address: Address, key: SessionKey, effects: Sequence[Effect]) -> None:
        for effect in effects:
            job = Job(address, key, effect)
            if self._has_room(self._counts[job.lane]) and not self._is_stopped:
                self._add(job)

    def _has_room(self, so_many: int) -> bool:
        """Whether one more of a version that has so many in memory may come there."""
        return so_many < (JOBS_OF_ONE if self._count < JOBS_MAX else JOBS_ALWAYS)

    def ended(self, key: SessionKey, effects: Collection[EffectId] | None) -> None:
        jobs = self._jobs.get(key)
        if jobs is None:
            return
        for job in [job for id_, job in jobs.items() if effects is None or id_ in effects]:
            if not job.is_answered:
                self._metrics.effects.labels(outcome="withdrawn").inc()
                self._drop(job)

    async def look(self) -> None:
        """Takes up what the database has and memory has not. Raises `Unavailable`."""
        counts = self._counts.copy()
        new = []
        for _ in range(PAGES):
            page = await self._store.due(self._clock.now_ms(), after=self._looked, limit=PAGE)
            for each in page:
                lane = each.machine_id, each.version
                if each.effect not in self._jobs.get(each.key, {}) and self._has_room(counts[lane]):
                    counts[lane] += 1
                    new.append(each)
            self._looked = page[-1] if len(page) == PAGE else None
            if self._looked is None or len(new) >= PAGE:
                break
        for taken in await self._store.take(new):
            self._take_up(taken)

    def _take_up(self, found: DueEffect) -> None:
        record = found.record
        if record.effect.id in self._jobs.get(record.key, {}) or self._is_stopped:
            return  # it was asked meanwhile
        address = Address(found.machine_id, found.session_id, found.version)
        job = Job(address, record.key, record.effect, record.tries, record.tried_at_ms)
        if record.tried_at_ms is not None:
            ago_s = max(0, self._clock.now_ms() - record.tried_at_ms) / 1000
            job.tried_s = self._clock.monotonic_s() - ago_s
        self._add(job)

    def _add(self, job: Job) -> None:
        self._jobs.setdefault(job.key, {})[job.effect.id] = job
        self._count += 1
        self._counts[job.lane] += 1
        self._queue(job)

    def _queue(self, job: Job) -> None:
        if self._jobs.get(job.key, {}).get(job.effect.id) is not job:
            return  # nobody waits for it any more
        lane = self._lanes.get(job.lane)
        if lane is None:
            lane = self._lanes[job.lane] = Lane()
            self._tasks.spawn(self._serve(lane, job.lane))
        lane.jobs.append(job)
        lane.wake.set()

    def _drop(self, job: Job) -> None:
        jobs = self._jobs.get(job.key, {})
        if jobs.pop(job.effect.id, None) is None:
            return
        self._count -= 1
        self._counts[job.lane] -= 1
        if not self._counts[job.lane]:
            del self._counts[job.lane]
        if not jobs:
            self._jobs.pop(job.key, None)
        if job.task is not None and job.task is not asyncio.current_task():
            job.task.cancel()

    # --- one machine after the other --------------------------------------------------------------

    async def _serve(self, lane: Lane[Job], name: tuple[MachineId, int]) -> None:
        """Begins the requests of a version, as fast as it may. After an unexpected error the
        database has those that were not begun, and `look` finds them.
        """
        try:
            await self._serve_each(lane, name)
        except Exception:
            log.exception("requests of %s", name[0])
            for job in lane.jobs:
                self._drop(job)
        finally:
            self._lanes.pop(name, None)
            self._room.step_back(lane)

    async def _serve_each(self, lane: Lane[Job], name: tuple[MachineId, int]) -> None:
        while lane.jobs or lane.under_way:
            if not lane.jobs:
                self._room.step_back(lane)
                lane.wake.clear()
                await lane.wake.wait()
                continue
            try:
                leave = await self._leaves.of(*name)
            except Unavailable as error:
                self._room.step_back(lane)
                log.warning("requests of %s wait: %s", name[0], error.detail)
                await asyncio.sleep(RETRY_S)
                continue
            except HubError as error:
                for dropped in lane.jobs:
                    self._drop(dropped)  # its machine is gone, and its sessions with it
                log.info("requests of %s are dropped: %s", name[0], error.detail)
                lane.jobs.clear()
                continue
            lane.project = leave.project
            if self._room.is_full(lane, leave.rules.in_flight):
                lane.wake.clear()
                await lane.wake.wait()
                continue
            per_s = leave.rules.per_second
            if not self._rates.take(name, per_s, self._clock.monotonic_s()):
                self._room.step_back(lane)
                await asyncio.sleep(1 / per_s)
                continue
            if (job := self._next(lane)) is not None:
                job.takes_room, job.counts_in = True, lane
                self._room.begin(lane)
                job.task = self._tasks.spawn(self._work(job, leave))
                job.task.add_done_callback(functools.partial(self._worked, job, lane))
            self._room.step_back(lane)

    def _end(self, job: Job) -> None:
        """It is under way no more, as far as others wait for room."""
        self._make_room(job)
        lane, job.counts_in = job.counts_in, None
        if lane is not None:
            self._room.end(lane)

    def _make_room(self, job: Job) -> None:
        """It is not being sent any more."""
        if job.takes_room:
            job.takes_room = False
            self._room.sent()

    def _next(self, lane: Lane[Job]) -> Job | None:
        """The next one that somebody still waits for."""
        while lane.jobs:
            job = lane.jobs.popleft()
            if self._jobs.get(job.key, {}).get(job.effect.id) is job:
                return job
        return None

    async def _work(self, job: Job, leave: Leave) -> None:
        answer = await self._try(job, leave)
        self._make_room(job)
        if answer is not None:
            job.is_answered = True
            await self._deliver(job, answer)
            self._drop(job)

    def _worked(self, job: Job, lane: Lane[Job], _task: asyncio.Task[None]) -> None:
        """Also of a task that was cancelled before it began."""
        self._end(job)
        lane.wake.set()

    # --- one request ------------------------------------------------------------------------------

    async def _try(self, job: Job, leave: Leave) -> Answer | None:
        """What a request came to; None when it will be tried again."""
        try:
            request = read_request(job.effect.request)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            return refusal("invalid_request", f"this cannot be fetched: {error}"[:300])
        asked = Asked(request, job.address, job.key, job.effect, leave)
        if job.tried_at_ms is None:
            job.tried_at_ms = self._clock.now_ms()
            job.tried_s = self._clock.monotonic_s()
        began_s = self._clock.monotonic_s()
        try:
            answer = await self._carry(asked)
        except Again as again:
            job.tries += 1
            if await self._wait(job, leave, again):
                return None
            answer = again.answer
        except Exception:
            log.exception("a request of %s", job.address.machine_id)
            answer = refusal("egress_failed", "the request failed")
            job.tries += 1
        else:
            job.tries += 1
        took_s = self._clock.monotonic_s() - began_s
        self._note(job, asked, answer, took_s)
        return answer

    async def _wait(self, job: Job, leave: Leave, again: Again) -> bool:
        """Whether there is another try, which is noted."""
        assert job.tried_at_ms is not None
        now_ms = self._clock.now_ms()
        wait_s = next_try_s(
            leave.rules,
            tries=job.tries,
            passed_s=self._clock.monotonic_s() - job.tried_s,
            after_s=again.after_s,
            luck=self._entropy.fraction(),
        )
        if wait_s is None:
            return False
        self._metrics.effect_retries.add()
        try:
            await self._store.note_try(
                job.key,
                job.effect.id,
                tries=job.tries,
                tried_at_ms=job.tried_at_ms,
                trouble=again.trouble[:300],
                due_at_ms=now_ms + round(wait_s * 1000),
            )
        except Unavailable as error:  # it is known here, and the database has an earlier time
            log.warning("a try could not be noted: %s", error.detail)
        asyncio.get_running_loop().call_later(wait_s, self._queue, job)
        return True

    def _note(self, job: Job, asked: Asked, answer: Answer, took_s: float) -> None:
        outcome = "answered" if answer.error is None else answer.error.code
        self._metrics.effects.labels(outcome=outcome).inc()
        self._metrics.effect_seconds.add(took_s)
        self.on_call(job.address, asked, answer, round(took_s * 1000))
        if answer.error is not None:
            request = asked.request
            text = f"{request.method} {request.url[:300]}: {answer.error.code}: "
            self._say(job, "warn", text + answer.error.detail)

    def _say(self, job: Job, level: str, text: str) -> None:
        address, now_ms = job.address, self._clock.now_ms()
        self._logs.add(address.machine_id, address.session_id, level, text, now_ms, None)

    async def _deliver(self, job: Job, answer: Answer) -> None:
        """Returns when the session has the answer, or needs none."""
        undone = 0
        while True:
            how = self._conclusion(job, answer)
            address = job.address._replace(version=None)
            encoded = encode_answer(answer)
            is_last = undone >= ANSWER_TRIES
            try:
                fault = await self._sessions.answer(
                    address, job.effect.id, encoded, how, key=job.key, is_last=is_last
                )
            except CallerError:
                return  # nobody waits for it any more
            except HubError as error:
                log.debug("an answer is given later: %s", error.detail)
                await asyncio.sleep(RETRY_S)
                continue
            if fault is None:
                return
            if fault.code in OUR_FAULTS:
                await asyncio.sleep(RETRY_S)
                continue
            if is_last:
                self._say(job, "error", f"the machine cannot take an answer: {fault.detail}")
                return
            self._end(job)  # others need not wait for that
            undone += 1
            if undone == ANSWER_TRIES:
                answer = refusal(
                    "answer_refused", f"the answer could not be taken: {fault.detail}"[:500]
                )
            else:
                await asyncio.sleep(RETRY_S * 2 ** (undone - 1))

    def _conclusion(self, job: Job, answer: Answer) -> Conclusion:
        passed_s = 0.0 if job.tried_at_ms is None else self._clock.monotonic_s() - job.tried_s
        ms = round(passed_s * 1000)
        if answer.error is not None:
            return Conclusion(answer.error.code, None, job.tries, ms)
        return Conclusion("answered", answer.status, job.tries, ms)
