"""One sandbox worker: its process, and the socket to it.

Decides: how a worker is started, what it may say at all, when it is ended. Everything it says is
hostile: here by form and by count, in `session/decide` by meaning.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast

from machinehub.workers import scratch
from sandbox.protocol import frames, messages
from sandbox.protocol.messages import (
    Forget,
    Frozen,
    LoadEngine,
    LoadImage,
    LoadTemplate,
    Progress,
    Ready,
    Said,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.ids import Digest
    from machinehub.model import Image
    from sandbox.protocol.ids import Slot

log = logging.getLogger("machinehub.workers")

COMMAND: Final = ("-m", "sandbox.worker")
END_S: Final = 2.0
"""How long a process may take to end whose socket is closed."""
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
SAID_CHARS: Final = 4_000
"""Of what a worker says of its end, so much goes into the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a worker process is started."""

    cache: Path
    """Where compiled modules are kept."""
    kind: Literal["session", "forge", "module", "compiler"] = "session"
    """What it is for: sessions of scripts, building scripts, sessions of modules
    (docs/guest-abi.md), building one module.
    """
    fuel: bool = False
    """Whether it counts wasmtime's fuel."""
    cpu_s_max: int = 0
    """CPU of the process as long as it lives; 0 for no limit."""
    root: Path | None = None
    """The user's own folder, whose files bundles are made of: for the command line, never in a hub.
    """
    memory_bytes_max: int = 0
    """Private memory of the process; 0 for no limit."""


class WorkerProcess(asyncio.Protocol):
    """One worker process and the socket to it.

    It is replaced, not restarted: its number never comes again.
    """

    def __init__(
        self,
        number: int,
        on_messages: Callable[[WorkerProcess, list[messages.ToHub]], None],
        on_lost: Callable[[WorkerProcess], None],
    ) -> None:
        self.number = number
        self.ready = asyncio.Event()
        self.lost = False
        self.suspect: Slot | None = None
        self._killed = False
        self._why = ""
        """Why it was killed, in a word."""
        self.kind = ""
        """What it was started for."""
        self.heard_at = 0.0
        self.started_at = 0.0
        self.wanted_at = 0.0
        """When a session was last placed here, or was about to be."""
        self._images: Counter[Digest] = Counter()
        self._engines: set[str] = set()
        self._templates: set[str] = set()
        self._modules: dict[Digest, str] = {}
        """Images of modules that are there, and their code."""
        self._owed: deque[tuple[Slot, messages.Question]] = deque()
        """What was asked, and about whom, in the order in which it is answered."""
        self._may_freeze = False
        self._has_spoken = False
        self._scratch: Path | None = None
        self.walls: list[tuple[str, bool, str]] = []
        """What the worker said of its walls when it was ready."""
        self.process: asyncio.subprocess.Process | None = None
        self._on_messages = on_messages
        self._on_lost = on_lost
        self._reader = frames.to_hub_reader()
        self._outgoing: list[messages.ToWorker] = []
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self, how: Start) -> None:
        ours, theirs = socket.socketpair()
        try:
            for end in (ours, theirs):
                for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    end.setsockopt(socket.SOL_SOCKET, option, 1024 * 1024)
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *COMMAND,
                "--fd",
                str(theirs.fileno()),
                *self._arguments(how),
                pass_fds=[theirs.fileno()],
                env={},
                cwd=Path(messages.__file__).parents[2],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.kind = how.kind
        self.started_at = self._loop.time()
        ours.setblocking(False)
        await self._loop.create_connection(lambda: self, sock=ours)

    def _arguments(self, how: Start) -> list[str]:
        arguments = [
            "--kind",
            how.kind,
            "--parent",
            str(os.getpid()),
            "--cache",
            str(how.cache),
            "--memory-bytes-max",
            str(how.memory_bytes_max),
        ]
        arguments += ["--cpu-s-max", str(how.cpu_s_max), *(["--fuel"] if how.fuel else [])]
        if how.kind == "forge":
            self._scratch = scratch.make()
            arguments += ["--scratch", str(self._scratch)]
        if how.root is not None:
            arguments += ["--root", str(how.root)]
        return arguments

    # --- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._killed:
            return  # what it says after it was given up may contradict what is done elsewhere now
        self.heard_at = self._loop.time()
        try:
            for batch in self._reader.feed(data):
                for message in batch:
                    self._account(message)
                self._on_messages(self, batch)
                if self._killed:
                    return
        except frames.BadFrame as error:
            self.kill(f"it sent no frame of the protocol: {error}")

    def _account(self, message: messages.ToHub) -> None:
        """One answer for each question, and a checkpoint at most with each answer.

        Raises `BadFrame`: whoever says more has been taken over.
        """
        match message:
            case Ready() | Progress():
                if self.ready.is_set():
                    raise frames.BadFrame("it was ready before")
            case Frozen():
                if not self._may_freeze:
                    raise frames.BadFrame("a checkpoint of nothing new")
                self._may_freeze = False
            case Said():
                if self._has_spoken:
                    raise frames.BadFrame("it said twice why it ends")
                self._has_spoken = True
                if "MemoryError" in message.text or "Cannot allocate memory" in message.text:
                    self._why = "memory"
                log.error(
                    "sandbox worker %d: %s",
                    self.number,
                    message.text[:SAID_CHARS].encode("ascii", "backslashreplace").decode(),
                )
            case _:
                if not self._owed or not messages.answers(self._owed[0][1], message):
                    raise frames.BadFrame("an answer that nobody asked for")
                self._owed.popleft()
                self._may_freeze = True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        self._tidy()
        if not self.lost:
            self.lost = True
            if not self._killed:
                self.suspect = self._due_next
            self._on_lost(self)

    def _tidy(self) -> None:
        """What a forge left behind may be more, and deeper, than can be removed while others
        wait.
        """
        if self._scratch is not None:
            threading.Thread(target=scratch.remove, args=(self._scratch,), name="tidying").start()

    # --- our own ----------------------------------------------------------------------------------

    @property
    def session_count(self) -> int:
        return self._images.total()

    @property
    def owes(self) -> int:
        """How many answers are due."""
        return len(self._owed)

    @property
    def _due_next(self) -> Slot | None:
        """Whom the next answer is about: what the worker does now."""
        return self._owed[0][0] if self._owed else None

    def ask(self, about: Slot, message: messages.Question) -> None:
        """Sends a message that will be answered, about a session or a build."""
        if not self._owed:
            self.heard_at = self._loop.time()
        self._owed.append((about, message))
        self.tell(message)

    def tell(self, message: messages.ToWorker) -> None:
        """Sends `message` with whatever else is sent in this turn of the event loop."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(message)

    def take(self, digest: Digest, image: Image) -> None:
        """Another session of this image comes to live here; the image is sent along with the first,
        and its engine if it is an old one.
        """
        if not self._images[digest]:
            if image.is_module:
                self._modules[digest] = image.engine
            if image.engine_code and image.engine not in self._engines:
                self._engines.add(image.engine)
                self.tell(LoadEngine(image.engine, image.engine_code))
            if image.template_code and image.template not in self._templates:
                self._templates.add(image.template)
                self.tell(LoadTemplate(image.template, image.template_code))
            self.tell(LoadImage(digest, image.image, image.template))
        self._images[digest] += 1

    def leave(self, digest: Digest) -> None:
        """A session of this image is gone; with the last one the image goes too."""
        self._images[digest] -= 1
        if self._images[digest] <= 0:
            del self._images[digest]
            self._engines.discard(
                self._modules.pop(digest, "")
            )  # the worker drops a module's code with its last image
            self.tell(Forget(digest))

    def _flush(self) -> None:
        messages, self._outgoing = self._outgoing, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames.encode(messages))

    def kill(self, why: str, *, reason: str = "protocol", suspect: Slot | None = None) -> None:
        """Ends the process. `why` is for the log, `reason` for the metric.

        `suspect` is the session to blame; else the one whose answer was due next, since a worker
        works in order.
        """
        if self._killed:
            return
        log.error("killing sandbox worker %d: %s", self.number, why)
        self._killed = True
        self._why = reason
        self.suspect = self._due_next if suspect is None else suspect
        self._end_process()
        if self._transport is not None:
            self._transport.abort()

    async def end(self) -> tuple[str, str]:
        """Why it ended, whose socket is closed: in a word for the metric, and for the log."""
        status = await self.ended()
        name = signal.Signals(-status).name if status < 0 else ""
        if self._why:
            return self._why, self._why
        if status == -signal.SIGSYS:
            return "walls", "its walls ended it"
        if status == -signal.SIGKILL:
            return "killed", "somebody killed it: the system, which had no memory left, or a person"
        if self._has_spoken:
            return "error", "it said why"
        return ("signal", name) if name else ("exit", f"exit code {status}")

    def memory_bytes(self) -> int:
        """Its resident memory; 0 when that cannot be told."""
        resident, _ = self._resident_and_shared_pages()
        return resident * PAGE_BYTES

    def resident_bytes(self) -> int:
        """Its memory that is its own: what it shares with others by files is left out."""
        resident, shared = self._resident_and_shared_pages()
        return (resident - shared) * PAGE_BYTES

    def _resident_and_shared_pages(self) -> tuple[int, int]:
        # The second and third field, see proc_pid_statm(5). Zeros when they cannot be read.
        if self.process is None:
            return 0, 0
        try:
            _, resident, shared, *_ = Path(f"/proc/{self.process.pid}/statm").read_bytes().split()
        except (OSError, ValueError):
            return 0, 0
        return int(resident), int(shared)

    def _end_process(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)

    async def stop(self) -> None:
        """Closes the socket, which ends the worker; kills it when that takes too long."""
        self.lost = True
        if self._transport is not None:
            self._transport.close()
        await self.ended()

    async def ended(self) -> int:
        """How the process ended, whose socket is closed.

        One that closed it and lives on is killed: it has been taken over, or hangs.
        """
        if self.process is None:
            return 0
        try:
            return await asyncio.wait_for(self.process.wait(), END_S)
        except TimeoutError:
            self._end_process()
            return await self.process.wait()
