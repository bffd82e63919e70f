"""The sessions that are in this hub's memory: by name, by key. Nothing is loaded or decided
here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

from machinehub.errors import NotFound
from machinehub.session.decide.session import Session

if TYPE_CHECKING:
    from machinehub.ids import MachineId, SessionId, SessionKey
    from machinehub.limits import Limits
    from machinehub.model import SessionRecord


class Registry:
    """All sessions in memory, by (machine id, session id) and by key."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_name: dict[tuple[MachineId, SessionId], Session] = {}
        self._by_key: dict[SessionKey, Session] = {}
        self.moving: WeakSet[Session] = WeakSet()
        """Sessions that are being handed over to another node, or were: they take no more events.
        """
        self._deleted: set[MachineId] = set()
        """Machines whose sessions are gone for ever: ids are never used twice."""

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def all(self) -> list[Session]:
        return list(self._by_name.values())

    def find(self, machine_id: MachineId, session_id: SessionId) -> Session | None:
        return self._by_name.get((machine_id, session_id))

    def of_key(self, key: SessionKey) -> Session | None:
        return self._by_key.get(key)

    def add(self, record: SessionRecord, now_ms: int) -> Session:
        """A session of which nothing is known yet. Raises `NotFound` when its machine was
        deleted.
        """
        if record.machine_id in self._deleted:
            raise NotFound("no_such_machine", f"there is no machine {record.machine_id!r}")
        session = Session(record, limits=self._limits)
        session.used(now_ms)
        self._by_name[record.machine_id, record.session_id] = session
        self._by_key[record.key] = session
        return session

    def rekey(self, session: Session, key: SessionKey) -> None:
        """It turned out to be in the database, under this key."""
        self._by_key.pop(session.record.key, None)
        self._by_key[key] = session

    def remove(self, session: Session) -> None:
        name = session.machine_id, session.session_id
        if self._by_name.get(name) is session:  # another may have its name by now
            del self._by_name[name]
        if self._by_key.get(session.record.key) is session:
            del self._by_key[session.record.key]

    # --- machines ---------------------------------------------------------------------------------

    def close_machine(self, machine_id: MachineId) -> list[Session]:
        """The machine is being deleted: no session of it is added any more. Returns those there
        are.
        """
        self._deleted.add(machine_id)
        return [session for session in self.all if session.machine_id == machine_id]

    def reopen_machine(self, machine_id: MachineId) -> None:
        """The machine could not be deleted."""
        self._deleted.discard(machine_id)

    def is_closed(self, machine_id: MachineId) -> bool:
        return machine_id in self._deleted
