"""Builds, as the hub asks for them: of the forge, one at a time, and of a compiler for each
module.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from machinehub.errors import BuildFailed as BuildFailedError
from machinehub.errors import Unavailable
from sandbox.protocol.ids import Slot, Ticket
from sandbox.protocol.messages import (
    Build,
    BuildFailed,
    BuildModule,
    Built,
    Compile,
    Compiled,
    EngineGiven,
    GiveEngine,
    Inputs,
    InputsFound,
    ModuleBuilt,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from machinehub.workers.compiler import Compiler
    from machinehub.workers.process import WorkerProcess
    from sandbox.protocol.access import Rule
    from sandbox.protocol.limits import GuestLimits, OwnLimits
    from sandbox.protocol.messages import Question, ToHub

BUILD_TIMEOUT_S: Final = 20.0
"""Of one build, from when the forge begins it: bundling and loading are limited to less by CPU."""
BUILDS_WAITING_MAX: Final = 64


class Builds:
    """`forge` is the process that builds scripts, while there is one; the pool replaces it when it
    dies.
    """

    def __init__(self, compiler: Compiler, forge: Callable[[], WorkerProcess | None]) -> None:
        self._compiler = compiler
        self._forge = forge
        self._tickets = 0
        self._answer: asyncio.Future[ToHub] | None = None
        self._building = asyncio.Lock()
        self._waiting_count = 0

    def received(self, message: ToHub) -> None:
        """The forge answered."""
        if not isinstance(message, Built | BuildFailed | InputsFound | EngineGiven):
            return
        if self._answer is not None and not self._answer.done() and message.ticket == self._tickets:
            self._answer.set_result(message)

    def forge_lost(self) -> None:
        """The forge died: of the build that it was at, as far as anybody can tell."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(
                BuildFailedError("build_crashed", "the sandbox died of this build")
            )

    async def build(
        self,
        *,
        entry: str,
        files: dict[str, str],
        cpu_ms: int,
        memory_bytes_max: int,
        bundle_bytes_max: int,
        on_error: str,
        transitions: str,
        limits: GuestLimits,
        own: OwnLimits,
        rules: list[Rule],
    ) -> Built:
        """Bundles and freezes an upload.

        Raises `errors.BuildFailed` for what is wrong with it, `Unavailable` for us.
        """
        answer = await self._ask(
            lambda ticket: Build(
                ticket,
                entry,
                files,
                on_error,
                transitions,
                cpu_ms,
                memory_bytes_max,
                bundle_bytes_max,
                limits,
                own,
                rules,
            )
        )
        assert isinstance(answer, Built)
        return answer

    async def build_module(
        self,
        *,
        module: bytes,
        name: str,
        cpu_ms: int,
        module_bytes_max: int,
        memory_bytes_max: int,
        limits: GuestLimits,
        own: OwnLimits,
        rules: list[Rule],
    ) -> ModuleBuilt:
        """Checks, compiles and freezes a module (docs/guest-abi.md). Raises as `build` does."""
        answer = await self._ask_compiler(
            BuildModule(
                Ticket(1),
                module,
                name,
                cpu_ms,
                memory_bytes_max,
                limits,
                own,
                module_bytes_max,
                rules,
            )
        )
        assert isinstance(answer, ModuleBuilt)
        return answer

    async def compile(self, code: bytes) -> bytes:
        """Machine code of a module's code, both zstd-compressed. Raises as `build` does."""
        answer = await self._ask_compiler(Compile(Ticket(1), code))
        assert isinstance(answer, Compiled)
        return answer.compiled

    async def _ask_compiler(self, question: BuildModule | Compile) -> ToHub:
        with self._waiting():
            return _raised(await self._compiler.ask(question))

    async def parts(self) -> EngineGiven:
        """The engine and the template of new images."""
        answer = await self._ask(GiveEngine)
        assert isinstance(answer, EngineGiven)
        return answer

    async def inputs(self, *, root: str, entry: str) -> list[str]:
        """The files below `root` that `entry` needs, relative to it."""
        answer = await self._ask(lambda ticket: Inputs(ticket, root, entry))
        assert isinstance(answer, InputsFound)
        return answer.files

    async def _ask(self, question: Callable[[Ticket], Question]) -> ToHub:
        with self._waiting():
            async with (
                self._building
            ):  # one at a time, so that the clock runs, and a crash is blamed, for one build only
                return _raised(await self._ask_forge(question))

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        if self._waiting_count >= BUILDS_WAITING_MAX:
            raise Unavailable("unavailable", "too many builds are waiting; try again")
        self._waiting_count += 1
        try:
            yield
        finally:
            self._waiting_count -= 1

    async def _ask_forge(self, question: Callable[[Ticket], Question]) -> ToHub:
        try:
            async with asyncio.timeout(BUILD_TIMEOUT_S):
                while (forge := self._forge()) is None or forge.lost or not forge.ready.is_set():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise Unavailable("unavailable", "the forge does not start; try again later") from None
        self._tickets += 1
        self._answer = asyncio.get_running_loop().create_future()
        forge.ask(Slot(self._tickets), question(Ticket(self._tickets)))
        try:
            return await asyncio.wait_for(self._answer, BUILD_TIMEOUT_S)
        except TimeoutError:
            forge.kill("a build took too long", reason="slow_build")
            raise BuildFailedError("build_timeout", "the build took too long") from None
        finally:
            self._answer = None


def _raised(answer: ToHub) -> ToHub:
    """The answer, unless it is a refusal: that is raised."""
    if isinstance(answer, BuildFailed):
        first = answer.errors[0] if answer.errors else None
        place = (
            ":".join(
                str(part) for part in (first.file, first.line, first.column) if part is not None
            )
            + ": "
            if first and first.file
            else ""
        )
        raise BuildFailedError(
            answer.code,
            place + (first.message if first else "the build failed"),
            errors=[
                {"file": e.file, "line": e.line, "column": e.column, "message": e.message}
                for e in answer.errors
            ],
        )
    return answer
