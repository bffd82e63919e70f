"""Compiling strangers' modules: each in a process of its own, with a cap on its CPU and memory,
that ends with the answer.

wasmtime isolates code while it runs, not while it is compiled: neither fuel nor epochs limit the
compiler. So a process that compiles an untrusted module holds no sessions, builds nothing else, and
ends with its answer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from machinehub.errors import BuildFailed
from machinehub.workers.process import WorkerProcess
from sandbox.protocol.ids import Slot
from sandbox.protocol.messages import BuildFailed as Refused
from sandbox.protocol.messages import BuildModule, Compile, Compiled, ModuleBuilt, Ready

if TYPE_CHECKING:
    from machinehub.workers.process import Start
    from sandbox.protocol import messages

TIMEOUT_S: Final = 20.0
_ABOUT: Final = Slot(1)


class Compiler:
    """Starts a process for each question. One at a time: the rest of the computer is the
    sessions'.
    """

    def __init__(self, how: Start) -> None:
        self._how = how
        self._turn = asyncio.Lock()
        self._numbers = 0

    async def ask(self, question: BuildModule | Compile) -> ModuleBuilt | Compiled | Refused:
        """Raises `BuildFailed` when the process dies of the question, or takes too long."""
        async with self._turn:
            self._numbers -= 1  # other workers count up
            answer: asyncio.Future[messages.ToHub] = asyncio.get_running_loop().create_future()

            def hear(worker: WorkerProcess, messages: list[messages.ToHub]) -> None:
                for message in messages:
                    if isinstance(message, Ready):
                        worker.ready.set()
                        worker.ask(_ABOUT, question)
                    elif (
                        isinstance(message, ModuleBuilt | Compiled | Refused) and not answer.done()
                    ):
                        answer.set_result(message)

            def lost(_worker: WorkerProcess) -> None:
                if not answer.done():
                    answer.set_exception(
                        BuildFailed(
                            "build_crashed",
                            "compiling the module took more CPU or memory than it may",
                        )
                    )

            worker = WorkerProcess(self._numbers, hear, lost)
            await worker.start(self._how)
            try:
                found = await asyncio.wait_for(answer, TIMEOUT_S)
            except TimeoutError:
                worker.kill("compiling a module took too long", reason="slow_build")
                raise BuildFailed("build_timeout", "compiling the module took too long") from None
            finally:
                await worker.stop()
        assert isinstance(found, ModuleBuilt | Compiled | Refused)
        return found
