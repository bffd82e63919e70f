"""Sends machines the events of their calendars.

Decides: nothing of when (`machinehub/calendar.py`), but that each time is sent once: the event's id
is made of the entry and the time, so the journal takes it once, whoever sends it how often. It is
noted afterwards that a time is over; a hub that is killed in between sends it again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from machinehub.clock import timestamp, timestamp_or_none
from machinehub.edge.problem import Json
from machinehub.errors import HubError, Unavailable, error_of
from machinehub.ids import EventId, SessionId
from machinehub.principal import Principal, Standing
from machinehub.session.decide.identity import Identity
from machinehub.session.port import Address, Visitor
from machinehub.store.calendar import Run
from machinehub.tasks import Tasks, look_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from machinehub.clock import Clock
    from machinehub.control.reach import Reach
    from machinehub.control.routes import Guarded
    from machinehub.ids import MachineId
    from machinehub.session.port import Sessions
    from machinehub.store.calendar import CalendarStore, Due

log = logging.getLogger("machinehub.calendar")

LOOK_S: Final = 1.0
OTHERS_MS: Final = 15_000
"""Where several hubs share the database each looks after some of the entries; what is so late is
anybody's.
"""
RETRY_S: Final = 5.0
ACCEPTED: Final = "accepted"
DETAIL_CHARS_MAX: Final = 500


class Calendar:
    """`start` it when sessions can be used. `is_mine` says which entries this hub looks after."""

    def __init__(
        self,
        store: CalendarStore,
        sessions: Sessions,
        clock: Clock,
        *,
        is_mine: Callable[[MachineId, str], bool],
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._clock = clock
        self._is_mine = is_mine
        self._rests_until_s: dict[tuple[MachineId, str], float] = {}
        """Of entries whose sessions could not be had."""
        self._tasks = Tasks()

    def start(self) -> None:
        if self._clock.ticks:
            self._tasks.spawn(look_on("calendars", LOOK_S, self.look, log, logging.WARNING))

    def stop(self) -> None:
        self._tasks.stop()

    async def look(self) -> None:
        """Sends what is due now. Raises `Unavailable`."""
        now_ms, now_s = self._clock.now_ms(), self._clock.monotonic_s()
        rests = self._rests_until_s
        self._rests_until_s = {name: at_s for name, at_s in rests.items() if at_s > now_s}
        due = [
            each
            for each in await self._store.due(now_ms)
            if each.due_at_ms is not None
            and (each.machine_id, each.entry.name) not in self._rests_until_s
            and (
                self._is_mine(each.machine_id, each.entry.name)
                or now_ms - each.due_at_ms > OTHERS_MS
            )
        ]
        await asyncio.gather(*(self._run(each, now_ms) for each in due))

    async def _run(self, due: Due, now_ms: int) -> None:
        assert due.due_at_ms is not None
        runs = []
        for at_ms in due.entry.due(due.due_at_ms, now_ms):
            try:
                runs.append(await self._send(due, at_ms))
            except Unavailable as error:
                log.warning("cron %r is sent later: %s", due.entry.name, error.detail)
                name = due.machine_id, due.entry.name
                self._rests_until_s[name] = self._clock.monotonic_s() + RETRY_S
                return  # those that were sent are known by their ids
        await self._store.ran(due, runs, next_ms=due.entry.next_after(now_ms))

    async def _send(self, due: Due, at_ms: int) -> Run:
        """Raises `Unavailable`."""
        entry = due.entry
        visitor = Visitor(
            Principal(Standing.LOCAL), identity=Identity(f"cron.{entry.name}", is_hub=True)
        )
        address = Address(due.machine_id, SessionId(entry.session))
        event_id = EventId(f"cron {timestamp(at_ms)}")
        try:
            answered = await self._sessions.send(
                address, entry.event_json, visitor, event_id=event_id
            )
            if answered.settled.error is not None:
                raise error_of(answered.settled.error)
        except Unavailable:
            raise
        except HubError as error:
            detail = error.detail[:DETAIL_CHARS_MAX]
            return Run(at_ms, self._clock.now_ms(), error.code, detail, None)
        return Run(at_ms, self._clock.now_ms(), ACCEPTED, "", answered.settled.seq)


class CalendarApi:
    """The deploy API's part for calendars."""

    def __init__(self, store: CalendarStore, reach: Reach) -> None:
        self._store = store
        self._reach = reach

    def calls(self) -> list[Guarded]:
        return [("read", "GET", "/machines/{machine}/cron", self.list)]

    async def list(self, request: Request) -> Response:
        machine = await self._reach.machine(request)
        found = await self._store.of_machine(machine.id)
        return Json({"data": [_show(due, runs) for due, runs in found], "next": None})


def _show(due: Due, runs: list[Run]) -> dict[str, Any]:
    entry = due.entry
    return {
        "name": entry.name,
        "expression": entry.expression,
        "zone": entry.zone,
        "session": entry.session,
        "event": entry.whole_event,
        "catch_up": entry.catch_up,
        "next_at": timestamp_or_none(due.due_at_ms),
        "runs": [
            {
                "at": timestamp(run.at_ms),
                "ran_at": timestamp(run.ran_at_ms),
                "outcome": run.outcome,
                "detail": run.detail,
                "seq": run.seq,
            }
            for run in runs
        ],
    }
