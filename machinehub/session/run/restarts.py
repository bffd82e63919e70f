"""Starting a session anew: the new one begins on a worker, beside the old one, and takes its place
in one transaction. So there is always one of them, whatever fails: a version that does not start
changes nothing, and a hub that dies in between has the old session or the new one.

Decides: that restarts of one session happen one after the other.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from machinehub.errors import NotFound
from machinehub.ids import Seq
from machinehub.model import Entry, Kind
from machinehub.session.messages import Snapshot
from machinehub.session.run.beginning import beginning_record, check_given
from sandbox.protocol.inputs import given_of, start_input

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from machinehub.clock import Clock, Entropy
    from machinehub.effect import Effect
    from machinehub.ids import MachineId, SessionId, SessionKey
    from machinehub.session.port import Address
    from machinehub.session.run.deletion import Deletions
    from machinehub.session.run.history import History
    from machinehub.session.run.scheduler import TimerScheduler
    from machinehub.session.versions import Versions
    from machinehub.store.sessions import SessionStore

FIRST = Seq(1)


class Restarts:
    def __init__(
        self,
        store: SessionStore,
        versions: Versions,
        clock: Clock,
        entropy: Entropy,
        *,
        history: History,
        deletions: Deletions,
        scheduler: TimerScheduler,
        ask: Callable[[Address, SessionKey, Sequence[Effect]], None],
    ) -> None:
        self._store = store
        self._versions = versions
        self._clock = clock
        self._entropy = entropy
        self._history = history
        self._deletions = deletions
        self._scheduler = scheduler
        self._ask = ask
        self._under_way: WeakValueDictionary[tuple[MachineId, SessionId], asyncio.Lock] = (
            WeakValueDictionary()
        )

    async def restart(self, address: Address) -> Snapshot:
        """Raises `NotFound`, `Unavailable`, and what the machine's start raises: then the session
        is as it was.
        """
        name = address.machine_id, address.session_id
        async with self._under_way.setdefault(name, asyncio.Lock()):
            return await self._restart(address)

    async def _restart(self, address: Address) -> Snapshot:
        machine_id, session_id, version = address
        record = await self._store.record(machine_id, session_id)
        found = await self._store.entries(record.key, after=(Seq(0), 0), limit=1)
        if not found or found[0].kind is not Kind.START:
            raise NotFound(
                "history_pruned",
                "the input that this session began with is not kept any more: delete it, and create"
                " it with its input",
            )
        given = given_of(found[0].input)
        target = await self._versions.target(machine_id, version)
        check_given(given, target)
        now_ms = self._clock.now_ms()
        new = beginning_record(machine_id, session_id, target, entropy=self._entropy, now_ms=now_ms)
        start = start_input(self._entropy.turn_seed(), given)
        entry = Entry(FIRST, 0, Kind.START, start, now_ms, changed=True)
        began = await self._history.begin(new, entry, cpu_ms=target.terms.limits.start_cpu_ms)
        await self._deletions.delete(machine_id, session_id, successor=began)
        saved = began.checkpoint
        self._scheduler.set(new.key, list(saved.timers.items()))
        self._ask(address._replace(version=target.number), new.key, began.effects)
        return Snapshot(FIRST, target.number, saved.snapshot)
