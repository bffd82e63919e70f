"""Machines' log lines, of all nodes: each keeps those of its own sessions."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from machinehub.cluster import wire
from machinehub.cluster.links import LinkLost
from machinehub.errors import HubError
from machinehub.ids import MachineId
from machinehub.logs import LogLine
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.cluster.links import Answering
    from machinehub.cluster.membership import Membership
    from machinehub.cluster.remote import Remote
    from machinehub.ids import NodeId
    from machinehub.logs import MachineLogs

RENEW_S: Final = 2.0
"""So often other nodes are told that their lines are still wanted."""
FOLLOWED_S: Final = 3 * RENEW_S
"""A node that was not told so for this long sends no more."""
ANSWER_S: Final = 2.0


class ClusterLogs:
    """What `MachineLogs` is for one hub."""

    def __init__(self, logs: MachineLogs, remote: Remote, membership: Membership) -> None:
        self._logs = logs
        self._remote = remote
        self._membership = membership
        self._wanted: dict[str, set[Callable[[LogLine], None]]] = {}
        self._tasks = Tasks()
        remote.on_line = self._come

    def stop(self) -> None:
        self._tasks.stop()

    async def read(self, machine_id: str, count: int) -> list[LogLine]:
        """Of all nodes, the oldest first."""
        found = [*self._logs.last(machine_id, count)]
        asks = (self._ask(node, machine_id, count) for node in self._membership.others)
        for lines in await asyncio.gather(*asks):
            found += lines
        return sorted(found, key=lambda line: line.at_ms)[-count:] if count else []

    def follow(self, machine_id: str, follower: Callable[[LogLine], None]) -> Callable[[], None]:
        stop_here = self._logs.follow(machine_id, follower)
        followers = self._wanted.setdefault(machine_id, set())
        followers.add(follower)
        if len(followers) == 1:
            self._tasks.spawn(self._renew_on(machine_id, followers))

        def stop() -> None:
            stop_here()
            followers.discard(follower)

        return stop

    def forget(self, machine_id: str) -> None:
        self._logs.forget(machine_id)

    async def _ask(self, node: NodeId, machine_id: str, count: int) -> list[LogLine]:
        with contextlib.suppress(HubError, LinkLost, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                ask = wire.Logs(MachineId(machine_id), count)
                return [_line(each) for each in await self._remote.ask(node, ask)]
        return []

    async def _renew_on(self, machine_id: str, followers: set[Callable[[LogLine], None]]) -> None:
        while followers:
            for node in self._membership.others:
                self._remote.post(node, wire.Follow(MachineId(machine_id)))
            await asyncio.sleep(RENEW_S)
        if self._wanted.get(machine_id) is followers:
            del self._wanted[machine_id]

    def _come(self, machine_id: MachineId, line: wire.Line) -> None:
        for follower in list(self._wanted.get(machine_id, ())):
            follower(_line(line))


class Followed:
    """Which machines' lines other nodes want of this one."""

    def __init__(self, logs: MachineLogs) -> None:
        self._logs = logs
        self._until: dict[tuple[Answering, MachineId], asyncio.TimerHandle] = {}
        self._stops: dict[tuple[Answering, MachineId], Callable[[], None]] = {}

    def follow(self, link: Answering, machine_id: MachineId) -> None:
        """For a while."""
        key = link, machine_id
        if key in self._until:
            self._until[key].cancel()
        else:
            self._stops[key] = self._logs.follow(
                machine_id, lambda line: link.post(wire.Logged(machine_id, wired(line)))
            )
        loop = asyncio.get_running_loop()
        self._until[key] = loop.call_later(FOLLOWED_S, self._end, key)

    def _end(self, key: tuple[Answering, MachineId]) -> None:
        del self._until[key]
        self._stops.pop(key)()


def wired(line: LogLine) -> wire.Line:
    return wire.Line(line.at_ms, line.session, line.level, line.text, line.cost)


def _line(line: wire.Line) -> LogLine:
    return LogLine(line.at_ms, line.session, line.level, line.text, line.cost)
