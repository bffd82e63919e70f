"""Questions to workers that are about no session in memory: of replays, and of what members see.

Each has a slot of its own, by which its answer is known.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from machinehub.errors import Unavailable
from sandbox.protocol.messages import Failed

if TYPE_CHECKING:
    from machinehub.session.run.worker_interfaces import SandboxWorker
    from sandbox.protocol.ids import Slot
    from sandbox.protocol.messages import Done, Question, Replayed, ToHub

ANSWER_S: Final = 30.0


class Questions:
    """`Outcomes` passes it the answers of workers for slots that no session has."""

    def __init__(self) -> None:
        self._asked: dict[Slot, tuple[SandboxWorker, asyncio.Future[ToHub]]] = {}

    async def ask(self, worker: SandboxWorker, slot: Slot, message: Question) -> ToHub:
        """Raises `Unavailable` when it cannot be done, now or at all."""
        if worker.lost:
            raise _ended()
        answer: asyncio.Future[ToHub] = asyncio.get_running_loop().create_future()
        self._asked[slot] = worker, answer
        worker.ask(slot, message)
        try:
            said = await asyncio.wait_for(answer, ANSWER_S)
        except TimeoutError:
            raise Unavailable("unavailable", "the worker takes too long; try again later") from None
        finally:
            self._asked.pop(slot, None)
        if isinstance(said, Failed):
            raise Unavailable(said.code, said.message)
        return said

    def answered(self, worker: SandboxWorker, message: Done | Failed | Replayed) -> None:
        """Completes the pending `ask` for the message's slot; any other message is ignored."""
        asked = self._asked.get(message.session)
        if asked is not None and asked[0] is worker and not asked[1].done():
            asked[1].set_result(message)

    def worker_lost(self, worker: SandboxWorker) -> None:
        for asked_of, answer in self._asked.values():
            if asked_of is worker and not answer.done():
                answer.set_exception(_ended())


def _ended() -> Unavailable:
    return Unavailable("unavailable", "the worker that was asked has ended; try again")
